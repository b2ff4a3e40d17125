"""What does `polytone data check` find, and how long does it take? Measured on rows with known faults.

    python -m bench.data [--seed 0] [FILE ...]

Prints recall by kind of fault, the share of clean rows that are called duplicates, and the seconds of the whole
command in a process of its own. FILEs are real conversations; printed is the share of their rows that are flagged.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.conversations import Planted, plant

BARS = {"near-duplicates": 0.95, "broken rows": 1.0, "leaked rows": 1.0, "personal data": 0.95}
FALSE_BAR, SECONDS_BAR = 0.01, 15.0
COPIES = ("exact_duplicate", "near_duplicate")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    planted = plant(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        train, held_out = write(Path(folder), planted)
        report, seconds = check(train, "--held-out", str(held_out))
    shares = recall(planted, report)
    false = len(false_copies(planted, report)) / len(planted.clean())
    for what, share in shares.items():
        print(f"{what:16} {share:7.2%} found (bar: {BARS[what]:.0%})")
    print(f"{'clean rows':16} {false:7.2%} called duplicates (bar: under {FALSE_BAR:.0%})")
    print(f"{'seconds':16} {seconds:7.1f} for {report['rows']} rows (bar: {SECONDS_BAR:g} on two cores)")
    for file in options.files:
        real, _ = check(file)
        flagged = len(lines(real, *COPIES))
        print(f"{file.name:16} {flagged / real['rows']:7.2%} called duplicates ({flagged} of {real['rows']} rows)")
    good = all(shares[what] >= bar for what, bar in BARS.items()) and false < FALSE_BAR and seconds <= SECONDS_BAR
    return 0 if good else 1


def write(folder: Path, planted: Planted) -> tuple[Path, Path]:
    train, held_out = folder / "train.jsonl", folder / "held_out.jsonl"
    train.write_text("\n".join(planted.train) + "\n")
    held_out.write_text("\n".join(planted.held_out) + "\n")
    return train, held_out


def check(*arguments: str | Path) -> tuple[dict[str, Any], float]:
    began = time.monotonic()
    command = [sys.executable, "-m", "polytone", "data", "check", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 2:
        raise SystemExit(done.stdout)
    return json.loads(done.stdout), time.monotonic() - began


def lines(report: dict[str, Any], *kinds: str) -> dict[int, Any]:
    """Line -> a finding of one of these kinds in the training file."""
    file = report["files"][0]["path"]
    return {one["line"]: one for one in report["findings"] if one["kind"] in kinds and one["file"] == file}


def recall(planted: Planted, report: dict[str, Any]) -> dict[str, float]:
    """The share found of every kind of fault. Of two copies it is the later one that is called a copy."""
    copies = lines(report, *COPIES)
    near = sum(
        line in copies or copies.get(source, {"copies": {}})["copies"].get("line") == line
        for line, source in planted.near.items()
    )
    broken = lines(report, "unreadable", "malformed", "empty", "one_sided", "role_order")
    return {
        "near-duplicates": near / len(planted.near),
        "broken rows": len(planted.broken & broken.keys()) / len(planted.broken),
        "leaked rows": len(planted.leaked & lines(report, "leak").keys()) / len(planted.leaked),
        "personal data": len(planted.personal & lines(report, "personal").keys()) / len(planted.personal),
    }


def false_copies(planted: Planted, report: dict[str, Any]) -> set[int]:
    """Clean rows that are called duplicates, but for those that a planted copy stands before."""
    copied = {source: line for line, source in planted.near.items() if line < source}
    return {line for line in lines(report, *COPIES).keys() & planted.clean() if line not in copied}


if __name__ == "__main__":
    sys.exit(main())
