"""Polytone as a process of its own: one command, or a server on a free port."""

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from bench.running import ServerProcess, polytone_process


def polytone(*arguments: str, home: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would."""
    command = [sys.executable, "-m", "polytone", *arguments]
    environment = {**os.environ, "POLYTONE_HOME": str(home), **settings}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=560)


def served(home: Path, log: Path, **settings: str) -> AbstractContextManager[ServerProcess]:
    """Run `polytone serve` on a free port; it is stopped, by force if need be, at the end."""
    return polytone_process(home, log, settings)
