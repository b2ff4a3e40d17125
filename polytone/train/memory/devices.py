"""Memory there is: this machine's own, and cards by name and size."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .plan import Device

GB = 1_000_000_000
UNITS = {"": GB, "gb": GB, "gib": 1 << 30, "mb": 1_000_000, "mib": 1 << 20}
# Nominal sizes in decimal GB, a little less than the cards have.
COMMON_CARDS = (
    ("RTX 4060", 8),
    ("RTX 3060", 12),
    ("T4, RTX 4080", 16),
    ("RTX 4090, L4, A10", 24),
    ("A100 40GB", 40),
    ("L40S, RTX A6000", 48),
    ("A100 80GB, H100", 80),
)


@dataclass(frozen=True)
class Card:
    """Somewhere a model could be trained; `bytes` is what it has, and of this machine what is available now."""

    name: str
    bytes: int
    device: Device


def common_cards() -> list[Card]:
    return [Card(f"{size} GB ({name})", size * GB, "cuda") for name, size in COMMON_CARDS]


def parse_size(text: str) -> int | None:
    """Bytes of a size such as `24GB`, `80GiB` or `16`, which means GB; None for anything else, and for nothing."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in UNITS:
        return None
    return int(float(match[1]) * UNITS[match[2]]) or None


def this_machine() -> Card:
    """This machine's GPU if it has one, else its RAM, with what is available now."""
    gpu = nvidia_memory("memory.free")
    if gpu is not None:
        return Card("this machine's GPU", gpu, "cuda")
    return Card("this machine's RAM", available_ram(), "cpu")


def has_gpu() -> bool:
    return nvidia_memory("memory.total") is not None


def nvidia_memory(field: str) -> int | None:
    """Bytes of the first GPU by NVIDIA's driver, which answers without loading PyTorch; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    first = (done.stdout.split() or [""])[0]
    return int(first) << 20 if done.returncode == 0 and first.isdigit() else None


def available_ram(proc: Path = Path("/proc/meminfo"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """What the kernel calls available, or less where a control group (a container) sets a limit."""
    lines = dict(line.split(":", 1) for line in proc.read_text().splitlines())
    return min([int(lines["MemAvailable"].split()[0]) * 1024, *group_limits(groups)])


def group_limits(groups: Path) -> Iterator[int]:
    """What is left under the limits of control groups, of both versions; cached files are given back on demand."""
    for folder, limit, used, cached in (
        (groups, "memory.max", "memory.current", "inactive_file"),
        (groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            numbers = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken = int((folder / used).read_text()) - int(numbers.get(cached, 0))
            yield max(0, int((folder / limit).read_text()) - taken)
        except (OSError, ValueError):  # no such version, or "max"
            continue
