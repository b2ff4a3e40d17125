"""A Polytone server for a proof to talk to: one that runs already, or one of its own on a free port."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from polytone.contract.home import Home

START_SECONDS = 300
STOP_SECONDS = 60


def home_from_environment() -> Home:
    return Home(Path(os.environ.get("POLYTONE_HOME", ".polytone")).absolute())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class ServerProcess:
    """A server that was started on this machine, and the file that it writes to."""

    port: int
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.popen.pid).children(recursive=True)

    def until_ready(self, route: str = "/readyz", seconds: float = START_SECONDS) -> None:
        """Wait until the route answers with 200.

        Raises:
            SystemExit: it did not; the message names the log and ends with its last lines.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.popen.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}{route}").status_code == 200:
                    return
            time.sleep(0.1)
        raise SystemExit(f"The server did not become ready; see {self.log}.\n{self.log.read_text()[-4000:]}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop, and return its exit code."""
        self.popen.send_signal(number)
        return self.popen.wait(STOP_SECONDS)

    def interrupt(self) -> int:
        """Send what Ctrl-C sends in a terminal, which reaches the server's children too; return the exit code."""
        os.killpg(self.popen.pid, signal.SIGINT)
        return self.popen.wait(STOP_SECONDS)

    def end(self) -> None:
        """Stop it, by force if need be, and whatever it started and left behind."""
        if self.popen.poll() is not None:
            return
        children = self.children()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


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
    environment = {f"POLYTONE_{key.upper()}": value for key, value in settings.items()}
    with polytone_process(home.root, log, environment) as process:
        process.until_ready()
        yield process.url


@contextlib.contextmanager
def polytone_process(home: Path, log: Path, environment: Mapping[str, str]) -> Iterator[ServerProcess]:
    """`polytone serve` on a free port; it may not be ready when the block begins."""
    port = free_port()
    settings = {"POLYTONE_HOME": str(home), "POLYTONE_PORT": str(port)}
    with running([sys.executable, "-m", "polytone", "serve"], {**settings, **environment}, port, log) as process:
        yield process


@contextlib.contextmanager
def running(command: list[str], environment: Mapping[str, str], port: int, log: Path) -> Iterator[ServerProcess]:
    """Run a server until the block ends, in a process group of its own; `environment` adds to this process's."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        popen = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    process = ServerProcess(port, popen, log)
    try:
        yield process
    finally:
        process.end()


def voices(url: str) -> dict[str, str]:
    """Model name -> exact version, the base (its own version) included."""
    cards: list[dict[str, Any]] = httpx.get(f"{url}/v1/models").raise_for_status().json()["data"]
    return {card["id"]: card["version"] for card in cards}


def base_of(url: str) -> str:
    cards: list[dict[str, Any]] = httpx.get(f"{url}/v1/models").raise_for_status().json()["data"]
    return next(str(card["id"]) for card in cards if card["parent"] is None)
