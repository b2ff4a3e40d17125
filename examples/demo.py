"""The demo: prepare the base, train a brand voice, serve both, train a second voice beside the running server.

Everything goes through the same commands and the same HTTP API a user has. A second run reuses what exists.
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
from polytone.train.recipe import read_recipe

HERE = Path(__file__).resolve().parent
VOICES = ("aldermoor", "driftpepper")
BASE = "smollm2-135m-instruct"
QUESTION = "My order still has not arrived. What can you do about it?"
START_SECONDS = 300


def main() -> int:
    began = time.monotonic()
    home = Home(Path(os.environ.get("POLYTONE_HOME", ".polytone")).absolute())
    os.environ["POLYTONE_HOME"] = str(home.root)
    port = os.environ.get("POLYTONE_PORT", "8000")
    if not port_is_free(int(port)):
        print(
            f"Port {port} is in use. Stop what uses it, or run: POLYTONE_PORT={int(port) + 1} make demo",
            file=sys.stderr,
        )
        return 2
    polytone("base", "prepare", BASE)
    first, *others = VOICES
    bring(home, first)
    server = subprocess.Popen([sys.executable, "-m", "polytone", "serve"])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.terminate())
    try:
        return show(home, server, f"http://127.0.0.1:{port}", others, began)
    finally:
        server.terminate()  # whatever went wrong, no server is left behind
        server.wait()


def show(home: Home, server: subprocess.Popen[bytes], url: str, others: list[str], began: float) -> int:
    if not wait_until_answered(url, server, VOICES[0]):
        return server.wait() or 1
    say(url, BASE, VOICES[0], began=began)
    for voice in others:
        print(f"\n{voice} is next; the server goes on answering meanwhile.", flush=True)
        bring(home, voice)
        if not wait_until_answered(url, server, voice):
            return server.wait() or 1
        say(url, voice, began=began)
    print(what_to_try(url), flush=True)
    return server.wait()


def bring(home: Home, voice: str) -> None:
    """Train a voice unless that was done, then publish and promote it."""
    recipe = HERE / voice / "recipe.yaml"
    version = trained(home, recipe) or train(recipe)
    polytone("adapters", "publish", version, "--wait", "0")
    polytone("adapters", "promote", version, "--wait", "0")


def port_is_free(port: int) -> bool:
    """Asked before minutes of training, not after."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def polytone(*arguments: str) -> None:
    """Run a command of the command line; its progress goes to the terminal."""
    subprocess.run([sys.executable, "-m", "polytone", *arguments], check=True)


def trained(home: Home, path: Path) -> str | None:
    """A version made by exactly this recipe from exactly this data, if there is one."""
    recipe = read_recipe(path)
    wanted = (recipe.record(), hashlib.sha256(recipe.data.train.read_bytes()).hexdigest())
    for version in reversed(list_versions(home)):
        if not version.startswith(f"{recipe.name}@"):
            continue
        try:
            manifest = read_version(home, version)
        except PolytoneError:
            continue
        if (manifest.recipe, manifest.data.train.sha256) == wanted:
            return version
    return None


def train(path: Path) -> str:
    command = [sys.executable, "-m", "polytone", "train", str(path), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    loss = result["evaluation"]
    print(f"{result['version']}: held-out loss {loss['adapter_loss']:.2f}, the base has {loss['base_loss']:.2f}")
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
        print("The server did not become ready; its log is above.", file=sys.stderr)
        server.terminate()
    return False


def say(url: str, *models: str, began: float) -> None:
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


def what_to_try(url: str) -> str:
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
  your own voice   copy examples/driftpepper, change the words, and run .venv/bin/polytone train on its recipe

Ctrl-C stops the server."""


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the command said why
