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
    port = free_port()
    environment = {**os.environ, "POLYTONE_HOME": str(home.root), "POLYTONE_PORT": str(port)}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "polytone", "serve"], env=environment, stdout=output, stderr=output
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        time.sleep(0.5)
    raise SystemExit(f"The server did not become ready; see {log}.")


def voices(url: str) -> dict[str, str]:
    """Model name -> exact version, the base (its own version) included."""
    cards: list[dict[str, Any]] = httpx.get(f"{url}/v1/models").raise_for_status().json()["data"]
    return {card["id"]: card["version"] for card in cards}


def base_of(url: str) -> str:
    cards: list[dict[str, Any]] = httpx.get(f"{url}/v1/models").raise_for_status().json()["data"]
    return next(str(card["id"]) for card in cards if card["parent"] is None)
