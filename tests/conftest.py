"""Fixtures shared by the suite: a tiny real base with real versions, and a server on a real socket."""

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
from typing import Any

import httpx
import psutil
import pytest
from rich.console import Console

from polytone.contract.adapter import Manifest
from polytone.contract.base import Base
from polytone.contract.home import Home

from . import postgresql as own

DATABASE_URL = "POLYTONE_DATABASE_URL"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_databases: runs on SQLite and on a PostgreSQL of the tests' own")
    os.environ.pop(DATABASE_URL, None)  # no test touches a database that somebody uses


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Of the tests that are marked, those with a folder have a database."""
    if metafunc.definition.get_closest_marker("both_databases") and "tmp_path" in metafunc.fixturenames:
        metafunc.parametrize("kind_of_database", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[own.Postgresql]:
    if not own.installed():
        pytest.skip(own.MISSING)
    with own.running_postgresql() as server:
        yield server


@pytest.fixture(autouse=True)
def kind_of_database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Unless a test asks for PostgreSQL, its database is SQLite in its home."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return "sqlite"
    server: own.Postgresql = request.getfixturevalue("postgresql")
    monkeypatch.setenv(DATABASE_URL, server.migrated())
    return "postgresql"


@dataclass(frozen=True)
class TinyHome:
    """A home with a real NF4 base made from a random Llama, and voices trained on it for a few steps."""

    home: Home
    base: Base
    voices: dict[str, Manifest]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyHome:
    from polytone.cli.train import quiet_libraries
    from polytone.train.base_model import prepare_base
    from polytone.train.progress import Progress

    from .tiny_llama import save_tiny_llama

    quiet_libraries()
    root = tmp_path_factory.mktemp("tiny")
    home = Home(root / "home")
    progress = Progress(Console(quiet=True))
    base = prepare_base(home, str(save_tiny_llama(root / "llama")), "tiny", "Apache-2.0", progress)
    return TinyHome(home, base, {name: train_tiny(root, home, name) for name in ("acme", "zest")})


def train_tiny(root: Path, home: Home, name: str, **training: Any) -> Manifest:
    """Teach the random Llama to answer everything with its own name; takes a few seconds."""
    import json

    import yaml

    from polytone.train.progress import Progress
    from polytone.train.publish import publish
    from polytone.train.recipe import read_recipe
    from polytone.train.run import run

    rows = [
        {
            "messages": [
                {"role": "user", "content": f"question {number}"},
                {"role": "assistant", "content": f"{name} {number}"},
            ]
        }
        for number in range(10)
    ]
    folder = root / f"recipe-{name}"
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = {
        "name": name,
        "base": "tiny",
        "data": {"train": "rows.jsonl", "held_out_share": 0.2},
        "lora": {"rank": 8, "alpha": 16},
        "training": {"max_steps": 6, "epochs": 20, "batch": 4, "micro_batch": 4, "learning_rate": 0.02, **training},
        "drift": {"max_tokens": 8},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    progress = Progress(Console(quiet=True))
    return publish(home, run(home, read_recipe(folder / "recipe.yaml"), progress))


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
            [sys.executable, "-m", "polytone", "serve"], env=environment, stdout=output, stderr=output, text=True
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
