"""Polytone as a process of its own: one command, or a server on a free port."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Process:
    """A `polytone serve` of its own."""

    url: str
    popen: subprocess.Popen[str]
    log: Path

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.popen.pid).children(recursive=True)

    def until_ready(self, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.popen.poll() is None, self.log.read_text()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            time.sleep(0.3)
        raise AssertionError(f"not ready in {seconds} s:\n{self.log.read_text()}")

    def interrupt(self) -> int:
        """As Ctrl-C in a terminal, which reaches the server's children too."""
        os.killpg(self.popen.pid, signal.SIGINT)
        return self.popen.wait(timeout=60)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(timeout=60)


def polytone(*arguments: str, home: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would."""
    command = [sys.executable, "-m", "polytone", *arguments]
    environment = {**os.environ, "POLYTONE_HOME": str(home), **settings}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=560)


@contextlib.contextmanager
def served(home: Path, log: Path, **settings: str) -> Iterator[Process]:
    """Run `polytone serve` on a free port; it is stopped, by force if need be, at the end."""
    port = free_port()
    environment = {**os.environ, "POLYTONE_HOME": str(home), "POLYTONE_PORT": str(port), **settings}
    with log.open("w") as output:
        popen = subprocess.Popen(
            [sys.executable, "-m", "polytone", "serve"],
            env=environment,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    process = Process(f"http://127.0.0.1:{port}", popen, log)
    try:
        yield process
    finally:
        if popen.poll() is None:
            leftovers = process.children()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.stop()
            for leftover in leftovers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    leftover.kill()
            if popen.poll() is None:
                popen.kill()
