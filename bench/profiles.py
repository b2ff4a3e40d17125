"""Memory of the drift baselines of 500 versions, each made from a reference of 200 answers.

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


def array_bytes(baseline: Baseline) -> int:
    weights = [baseline.tone.weights] if baseline.tone else []
    return sum(int(array.nbytes) for array in (*baseline.values.values(), *weights))


def main() -> int:
    make_baseline(reference(0), [])  # imports the libraries, whose memory does not count
    process = psutil.Process()
    before = process.memory_info().rss
    baselines = list[Baseline]()
    for number in range(VERSIONS):
        baselines.append(make_baseline(reference(number), []))
        if not (number + 1) % 100:
            print(f"{number + 1} baselines: {(process.memory_info().rss - before) / 1e6:.0f} MB", flush=True)
    held = sum(array_bytes(baseline) for baseline in baselines) / 1e6
    grown = (process.memory_info().rss - before) / 1e6
    print(f"{VERSIONS} versions: {held:.0f} MB of arrays, the process grew by {grown:.0f} MB (at most {LIMIT_MB})")
    return 0 if grown <= LIMIT_MB else 1


if __name__ == "__main__":
    sys.exit(main())
