"""A Polytone server for a proof to talk to: one that runs already, or one of its own on a free port."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from polytone.contract.home import Home

START_SECONDS = 300


def home_from_environment() -> Home:
    return Home(Path(os.environ.get("POLYTONE_HOME", ".polytone")).absolute())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(url: str | None, home: Home, log: Path) -> Iterator[str]:
    """Yield the address of a ready server: `url` if given, else a `polytone serve` started and ended here.

    Raises:
        SystemExit: the server did not become ready; the message names its log.
    """
    if url is not None:
        yield url
        return
    with polytone_server(home, log) as started_url:
        yield started_url


@contextlib.contextmanager
def polytone_server(home: Home, log: Path, **settings: str) -> Iterator[str]:
    """Polytone on `home`; `settings` are environment variables without their prefix. Raises as `server` does."""
    port = free_port()
    given = {f"POLYTONE_{key.upper()}": value for key, value in settings.items()}
    environment = {"POLYTONE_HOME": str(home.root), "POLYTONE_PORT": str(port), **given}
    with started([sys.executable, "-m", "polytone", "serve"], environment, port, "/readyz", log) as url:
        yield url


@contextlib.contextmanager
def started(command: list[str], environment: dict[str, str], port: int, health: str, log: Path) -> Iterator[str]:
    """Run a server until the block ends; yields its address once its route `health` answers with 200."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(f"{url}{health}", process, log)
        yield url
    finally:
        end(process)


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"The server did not become ready; see {log}.")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop; what it started and left behind is ended too."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=60)
    if process.poll() is None:
        process.kill()
        process.wait()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def voices(url: str) -> dict[str, str]:
    """Model name -> exact version, the base (its own version) included."""
    cards: list[dict[str, Any]] = httpx.get(f"{url}/v1/models").raise_for_status().json()["data"]
    return {card["id"]: card["version"] for card in cards}


def base_of(url: str) -> str:
    cards: list[dict[str, Any]] = httpx.get(f"{url}/v1/models").raise_for_status().json()["data"]
    return next(str(card["id"]) for card in cards if card["parent"] is None)
