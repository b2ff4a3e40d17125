"""Available memory: this machine's own, and graphics cards by name and size."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import ByteSize, TypeAdapter, ValidationError

from .plan import Device

GB = 1_000_000_000
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
    """A place to train; `bytes` is its memory, and for this machine what is available now."""

    name: str
    bytes: int
    device: Device


def common_cards() -> list[Card]:
    return [Card(f"{size} GB ({name})", size * GB, "cuda") for name, size in COMMON_CARDS]


def parse_size(text: str) -> int | None:
    """Bytes of a size such as `24GB`, `80GiB` or `16`, which means GB; None for anything else, and for 0."""
    number = text.strip()
    try:
        return TypeAdapter(ByteSize).validate_python(f"{number}GB" if number.isdecimal() else number) or None
    except ValidationError:
        return None


def this_machine() -> Card:
    """This machine's GPU if it has one, else its RAM, with what is available now."""
    gpu = nvidia_memory("memory.free")
    if gpu is not None:
        return Card("this machine's GPU", gpu, "cuda")
    return Card("this machine's RAM", available_ram(), "cpu")


def has_gpu() -> bool:
    return nvidia_memory("memory.total") is not None


def nvidia_memory(field: str) -> int | None:
    """Bytes of the first GPU by nvidia-smi, which needs no PyTorch; None without a GPU."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    first = (done.stdout.split() or [""])[0]
    return int(first) << 20 if done.returncode == 0 and first.isdigit() else None


def available_ram(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """What the kernel calls available, or less where a control group (a container) sets a limit."""
    return min([psutil.virtual_memory().available, *group_limits(groups)])


def group_limits(groups: Path) -> Iterator[int]:
    """Memory left under the limits of control groups, versions 1 and 2; cached files do not count as used."""
    for folder, limit, used, cached in (
        (groups, "memory.max", "memory.current", "inactive_file"),
        (groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used_bytes = int((folder / used).read_text()) - int(statistics.get(cached, 0))
            yield max(0, int((folder / limit).read_text()) - used_bytes)
        except (OSError, ValueError):  # no such version, or "max"
            continue
