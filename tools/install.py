"""Install locks into this Python's environment, then Polytone itself in place.

    python tools/install.py requirements/cpu.txt requirements/dev.txt

Nothing is resolved: the locks name every package with the hashes of its wheels, and pip refuses any other file. Modules
are compiled when they are first imported, since most never are.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
EXACTLY = ["--require-hashes", "--no-deps", "--only-binary", ":all:"]
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
SECONDS_BETWEEN_LINES = 5


def main(locks: list[Path]) -> int:
    here = Path(__file__).resolve().parent.parent
    for requirement in torch_requirements(locks):
        if not run_with_torch(["install", "--quiet", "--no-compile", *EXACTLY], requirement):
            return 1
    if not install_all(locks):
        return 1
    print("Installing Polytone itself ...", flush=True)
    editable = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(here)]
    return subprocess.run([*PIP, *editable], check=False).returncode


def torch_requirements(locks: list[Path]) -> list[str]:
    """PyTorch's builds for CPUs, each with its hashes; the default index does not have them."""
    return [
        match[0] for lock in locks for match in re.finditer(r"^torch==.*\+cpu(.*\\\n)*.*\n", lock.read_text(), re.M)
    ]


def run_with_torch(command: list[str], requirement: str) -> bool:
    """Run pip on one requirement: as pip is configured (a mirror, a find-links folder), else on PyTorch's index."""
    name = requirement.partition(" ")[0]
    print(f"Fetching {name} ...", flush=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(requirement)
        file.flush()
        for extra in ([], ["--extra-index-url", TORCH_INDEX]):
            done = subprocess.run(
                [*PIP, *command, *extra, "-r", file.name], capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                return True
    print(done.stderr.strip()[-2000:], file=sys.stderr)
    print(
        f"\nMissing: {name}. It is neither on pip's configured indexes and find-links nor reachable at {TORCH_INDEX}.\n"
        "Download that wheel where you have internet, put it into a folder, and run again with\n"
        "    PIP_FIND_LINKS=/that/folder make setup",
        file=sys.stderr,
    )
    return False


def install_all(locks: list[Path]) -> bool:
    """Install every package of the locks, and print a line of progress now and then; pip prints one a package."""
    total = sum(len(re.findall(r"^[\w.-]+==", lock.read_text(), re.M)) for lock in locks)
    command = [
        *PIP,
        "install",
        "--no-compile",
        *EXACTLY,
        "--progress-bar",
        "off",
        *(f"--requirement={lock}" for lock in locks),
    ]
    started = last_line = time.monotonic()
    fetched, output = 0, []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            output.append(line)
            fetched += line.startswith(("Collecting", "Processing", "Requirement already"))
            now = time.monotonic()
            if fetched < total and now - last_line > SECONDS_BETWEEN_LINES:
                last_line = now
                left = (now - started) / max(fetched, 1) * (total - fetched)
                print(f"Fetching packages: {fetched}/{total}, about {max(left, 1):.0f} s left", flush=True)
            if line.startswith("Installing collected"):
                print(f"Unpacking {total} packages (half a minute) ...", flush=True)
    if process.returncode:
        print("".join(output[-20:]), file=sys.stderr)
        print("\nThe package that pip names above could not be installed; see requirements/.", file=sys.stderr)
    return process.returncode == 0


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
