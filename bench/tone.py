"""Is the tone real? A simple text classifier tells the served voices' replies to held-out customers apart.

It is fitted on the brands' training replies and on replies of the served base to training customers, and judges the
replies that base and voices give, over the API, to customers none of them has seen. All brands answer the same
customers, so that only the tone can tell them apart. Exit code 1 below the bar.
"""

import argparse
import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from openai import AsyncOpenAI
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.pipeline import make_pipeline

from bench.running import base_of, home_from_environment, server
from polytone.train.dataset.training_rows import read_conversations

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
BAR = 0.9
AT_ONCE = 16
MAX_TOKENS = 80


@dataclass(frozen=True)
class Verdict:
    """Accuracy over all judged replies, and per speaker how many of its replies went to each speaker."""

    accuracy: float
    speakers: list[str]
    counts: list[list[int]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server; without it one is started on the home folder")
    parser.add_argument("--examples", type=Path, default=EXAMPLES, help="folder with a folder of rows for each voice")
    parser.add_argument("voices", nargs="*", default=["aldermoor", "driftpepper"])
    options = parser.parse_args()
    home = home_from_environment()
    with server(options.url, home, home.root / "soak" / "tone.log") as url:
        verdict = asyncio.run(judge(url, options.examples, options.voices))
    print(f"{'replies of':>24}   judged as {', '.join(verdict.speakers)}")
    for speaker, row in zip(verdict.speakers, verdict.counts, strict=True):
        print(f"{speaker:>24}   {row}")
    print(f"accuracy {verdict.accuracy:.3f} (must be at least {BAR})")
    return 0 if verdict.accuracy >= BAR else 1


async def judge(url: str, examples: Path, names: list[str]) -> Verdict:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    base = base_of(url)
    limit = asyncio.Semaphore(AT_ONCE)
    texts, speakers = [], []
    for name in names:
        replies = said_by("assistant", examples / name / "train.jsonl")
        texts += replies
        speakers += [name] * len(replies)
    of_base = await ask_all(client, limit, base, said_by("user", examples / names[0] / "train.jsonl", first=True))
    texts += of_base
    speakers += [base] * len(of_base)
    classifier = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1000, class_weight="balanced"),
    )
    classifier.fit(texts, speakers)
    served, truth = [], []
    for model in (base, *names):
        customers = said_by("user", examples / names[0] / "held_out.jsonl", first=True)
        served += await ask_all(client, limit, model, customers)
        truth += [model] * len(customers)
    order = [base, *names]
    judged = classifier.predict(served)
    accuracy = sum(a == b for a, b in zip(judged, truth, strict=True)) / len(truth)
    return Verdict(accuracy, order, confusion_matrix(truth, judged, labels=order).tolist())


def said_by(role: str, path: Path, first: bool = False) -> list[str]:
    """Every turn of a role in a file, or only the first of each conversation."""
    turns = [[m.content for m in row.messages if m.role == role] for row in read_conversations(path).rows]
    return [turn for row in turns for turn in (row[:1] if first else row)]


async def ask_all(client: AsyncOpenAI, limit: asyncio.Semaphore, model: str, customers: list[str]) -> list[str]:
    async def ask(customer: str) -> str:
        async with limit:
            answer = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": customer}],
                temperature=0,
                max_tokens=MAX_TOKENS,
            )
        return answer.choices[0].message.content or ""

    replies = await asyncio.gather(*map(ask, customers))
    print(json.dumps({"model": model, "asked": len(customers), "example": replies[0]}), file=sys.stderr)
    return list(replies)


if __name__ == "__main__":
    sys.exit(main())
