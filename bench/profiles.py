"""How much memory the drift profiles of 500 versions take: made from a reference of 200 answers each, all kept.

python -m bench.profiles        Exit code 1 above 150 MB.
"""

import random
import sys

import psutil

from bench.load import WORDS
from polytone.contract.reference import ReferenceRow
from polytone.contract.rows import Message
from polytone.serve.drift.baseline import Baseline, make_baseline

VERSIONS, ROWS, LIMIT_MB = 500, 200, 150


def reference(seed: int) -> list[ReferenceRow]:
    chance = random.Random(seed)  # noqa: S311 - the same texts in every run

    def text(words: int) -> str:
        return " ".join(chance.choice(WORDS) for _ in range(words))

    return [
        ReferenceRow(
            messages=[Message(role="user", content=text(12))],
            reply=text(20),
            reply_tokens=20,
            finish_reason="stop",
            base_reply=text(40),
            base_reply_tokens=40,
            base_finish_reason="length",
        )
        for _ in range(ROWS)
    ]


def main() -> int:
    make_baseline(reference(0), [])  # the libraries are imported, and their memory is not a version's
    process = psutil.Process()
    before = process.memory_info().rss
    baselines = list[Baseline]()
    for number in range(VERSIONS):
        baselines.append(make_baseline(reference(number), []))
        if not (number + 1) % 100:
            print(f"{number + 1} profiles: {(process.memory_info().rss - before) / 1e6:.0f} MB", flush=True)
    held = sum(baseline.bytes_held() for baseline in baselines) / 1e6
    grown = (process.memory_info().rss - before) / 1e6
    print(f"{VERSIONS} versions: {held:.0f} MB of arrays, the process grew by {grown:.0f} MB (at most {LIMIT_MB})")
    return 0 if grown <= LIMIT_MB else 1


if __name__ == "__main__":
    sys.exit(main())
