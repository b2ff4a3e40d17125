"""Install pinned locks into this Python's environment, then Polytone itself in place.

Nothing is resolved: the locks name every package. `torch==...+cpu` is not on the default index: pip's own configuration
(a mirror, a find-links folder) is asked first, PyTorch's wheel index second.
"""

import subprocess
import sys
import time
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def main(locks: list[Path]) -> int:
    of_torchs_index, others = read_pins(locks)
    for pin in of_torchs_index:
        if not install_torch(pin):
            return 1
    if not install_all(others):
        return 1
    here = Path(__file__).resolve().parent.parent
    editable = [*PIP, "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(here)]
    return subprocess.run(editable, check=False).returncode


def read_pins(locks: list[Path]) -> tuple[list[str], list[str]]:
    """Those that the default index lacks, and the others."""
    lines = [line.strip() for lock in locks for line in lock.read_text().splitlines()]
    pins = [line for line in lines if line and not line.startswith("#")]
    return [pin for pin in pins if "+cpu" in pin], [pin for pin in pins if "+cpu" not in pin]


def install_torch(pin: str) -> bool:
    print(f"Installing {pin} ...", flush=True)
    command = [*PIP, "install", "--quiet", "--no-deps", pin]
    for extra in ([], ["--extra-index-url", TORCH_INDEX]):
        done = subprocess.run([*command, *extra], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return True
    print(done.stderr.strip()[-2000:], file=sys.stderr)
    print(
        f"\nMissing: {pin}. It is neither on pip's configured indexes and find-links nor reachable at {TORCH_INDEX}.\n"
        "Download that wheel where you have internet, put it into a folder, and run again with\n"
        "    PIP_FIND_LINKS=/that/folder make setup",
        file=sys.stderr,
    )
    return False


def install_all(pins: list[str]) -> bool:
    """Install with a line of progress now and then; pip prints one line a package."""
    wanted = Path(sys.prefix) / "polytone-lock.txt"
    wanted.write_text("\n".join(pins) + "\n")
    command = [*PIP, "install", "--no-deps", "--progress-bar", "off", "-r", str(wanted)]
    began = spoke = time.monotonic()
    seen, output = 0, []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            output.append(line)
            seen += line.startswith(("Collecting", "Processing", "Requirement already"))
            now = time.monotonic()
            if seen and now - spoke > 5:
                spoke = now
                left = (now - began) / seen * (len(pins) - seen)
                print(f"Fetching packages: {seen}/{len(pins)}, about {max(left, 1):.0f} s left", flush=True)
            if line.startswith("Installing collected"):
                print(f"Unpacking {len(pins)} packages (about a minute) ...", flush=True)
    if process.returncode:
        print("".join(output[-20:]), file=sys.stderr)
        print("\nThe package that pip names above could not be installed; see requirements/.", file=sys.stderr)
    return process.returncode == 0


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
