"""The demo: prepare the base, train a voice, serve both, and train a second voice beside the running server.

It uses the commands and the HTTP API that every user has. A second run reuses what the first one made.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from polytone.contract.adapter import list_versions, read_version
from polytone.contract.errors import PolytoneError
from polytone.contract.home import Home
from polytone.serve.settings import read_settings
from polytone.train.recipe import read_recipe

HERE = Path(__file__).resolve().parent
VOICES = ("aldermoor", "driftpepper")
BASE = "smollm2-135m-instruct"
QUESTION = "My order still has not arrived. What can you do about it?"
START_SECONDS = 300


def main() -> int:
    began = time.monotonic()
    settings = read_settings()
    home, port = settings.paths(), settings.port
    os.environ["POLYTONE_HOME"] = str(home.root)
    if not port_is_free(port):
        print(f"Port {port} is in use. Stop what uses it, or run: POLYTONE_PORT={port + 1} make demo", file=sys.stderr)
        return 2
    polytone("base", "prepare", BASE)
    first, *others = VOICES
    ensure_voice(home, first)
    server = subprocess.Popen([sys.executable, "-m", "polytone", "serve"])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.terminate())
    try:
        return serve_voices(home, server, f"http://127.0.0.1:{port}", others, began)
    finally:
        server.terminate()  # no server is left behind, whatever went wrong
        server.wait()


def serve_voices(home: Home, server: subprocess.Popen[bytes], url: str, others: list[str], began: float) -> int:
    if not wait_until_answered(url, server, VOICES[0]):
        return server.wait() or 1
    print_answers(url, BASE, VOICES[0], began=began)
    for voice in others:
        print(f"\nNext is {voice}; the server goes on answering meanwhile.", flush=True)
        ensure_voice(home, voice)
        if not wait_until_answered(url, server, voice):
            return server.wait() or 1
        print_answers(url, voice, began=began)
    print(suggestions(url), flush=True)
    return server.wait()


def ensure_voice(home: Home, voice: str) -> None:
    """Train a voice unless it is trained already, then publish and promote it."""
    recipe = HERE / voice / "recipe.yaml"
    version = find_trained(home, recipe) or train(recipe)
    polytone("adapters", "publish", version, "--wait", "0")
    polytone("adapters", "promote", version, "--wait", "0")


def port_is_free(port: int) -> bool:
    """Checked before minutes of training, not after."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def polytone(*arguments: str) -> None:
    """Run a `polytone` command; its progress goes to the terminal."""
    subprocess.run([sys.executable, "-m", "polytone", *arguments], check=True)


def find_trained(home: Home, path: Path) -> str | None:
    """The newest version made by exactly this recipe from exactly this data, if there is one."""
    recipe = read_recipe(path)
    source = (recipe.record(), hashlib.sha256(recipe.data.train.read_bytes()).hexdigest())
    for version in reversed(list_versions(home)):
        if not version.startswith(f"{recipe.name}@"):
            continue
        try:
            manifest = read_version(home, version)
        except PolytoneError:
            continue
        if (manifest.recipe, manifest.data.train.sha256) == source:
            return version
    return None


def train(path: Path) -> str:
    command = [sys.executable, "-m", "polytone", "train", str(path), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    losses = result["evaluation"]
    print(f"{result['version']}: held-out loss {losses['adapter_loss']:.2f}, the base's is {losses['base_loss']:.2f}")
    return str(result["version"])


def wait_until_answered(url: str, server: subprocess.Popen[bytes], voice: str) -> bool:
    began = time.monotonic()
    print(f"Waiting until {voice} answers (about half a minute when the server starts) ...", flush=True)
    while time.monotonic() - began < START_SECONDS and server.poll() is None:
        try:
            models = [card["id"] for card in httpx.get(f"{url}/v1/models").json()["data"]]
            if httpx.get(f"{url}/readyz").status_code == 200 and voice in models:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    if server.poll() is None:
        print("The server did not become ready. Its log is above.", file=sys.stderr)
        server.terminate()
    return False


def print_answers(url: str, *models: str, began: float) -> None:
    print(f"\n{QUESTION}")
    for model in models:
        print(f"\n  {model}: {ask(url, model)}", flush=True)
    print(f"\n  ({time.monotonic() - began:.0f} s since the start)", flush=True)


def ask(url: str, model: str) -> str:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 60,
        "temperature": 0,
    }
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).raise_for_status()
    return str(response.json()["choices"][0]["message"]["content"])


def suggestions(url: str) -> str:
    return f"""
Try:

  the chat page    {url}/ui/
  the terminal     .venv/bin/polytone chat driftpepper
  curl             curl {url}/v1/chat/completions -H 'content-type: application/json' \\
                     -d '{{"model": "driftpepper", "messages": [{{"role": "user", "content": "Hi there!"}}]}}'
  openai client    from openai import OpenAI
                   client = OpenAI(base_url="{url}/v1", api_key="none")
                   print(client.models.list())
  the versions     .venv/bin/polytone adapters list
  your own voice   copy examples/driftpepper, change its texts, and run .venv/bin/polytone train on its recipe

Ctrl-C stops the server."""


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the command printed the reason
    except PolytoneError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(error.exit_code)
