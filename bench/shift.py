"""Does a real shift show? Real conversations from files, answered by a real voice, replayed in shuffled orders.

    python -m bench.shift VERSION --same same.jsonl --other other.jsonl

Each conversation is asked once, at a turn drawn by its content, of the voice and of its bare base. Then the detectors
see, in five orders each: the same kind of conversations (no alarm wanted), those and then the other kind (an alarm
within 150 wanted), and the voice and then its base in its place (the tone noticed within 60 wanted). The first 200
conversations are the reference of the topics.
"""

import argparse
import asyncio
import hashlib
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bench.running import base_of, home_from_environment, server
from polytone.contract.base import base_folder
from polytone.serve.drift.baseline import Baseline, Baselines
from polytone.serve.drift.detectors import PROMPTS, REPLIES, ScalarDetector, VectorDetector
from polytone.serve.drift.embedding import token_embedding
from polytone.serve.traffic.capture import AnswerSignals
from polytone.train.dataset.training_rows import read_conversations

STREAMS = 32
SHUFFLES = 5
RUN_LENGTH = 20_000.0
BEFORE = 150
NEW_TOPICS_WITHIN, BASE_WITHIN = 150, 60


@dataclass(frozen=True)
class Told:
    """One answer, measured as the server measures it."""

    id: str
    measured: AnswerSignals


@dataclass(frozen=True)
class Noticed:
    """After how many conversations of the change which signal alarmed first; None where none did."""

    after: int | None
    signal: str | None


def prompts(path: Path, most: int) -> list[list[dict[str, str]]]:
    """The history up to one user's turn of each conversation."""
    found = []
    for row in read_conversations(path).rows[:most]:
        messages = row.as_dicts()
        drawn = int(hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:8], 16)
        asked = [i for i, message in enumerate(messages) if message["role"] == "user"]
        found.append(messages[: asked[drawn % len(asked)] + 1])
    return found


async def answers(url: str, model: str, asked: Sequence[list[dict[str, str]]], tokens: int) -> list[dict[str, Any]]:
    """Each prompt's answer, `STREAMS` at a time, sampled as the voice is by default.

    Every one has a seed of its own: with one seed for all, the same draws would choose every reply's first words.
    """
    gate = asyncio.Semaphore(STREAMS)

    async def ask(client: httpx.AsyncClient, seed: int, messages: list[dict[str, str]]) -> dict[str, Any]:
        async with gate:
            body = {"model": model, "messages": messages, "max_tokens": tokens, "seed": seed}
            response = await client.post(f"{url}/v1/chat/completions", json=body)
            return dict(response.raise_for_status().json())

    async with httpx.AsyncClient(timeout=900) as client:
        return list(await asyncio.gather(*(ask(client, *numbered) for numbered in enumerate(asked))))


def measured(
    baselines: Baselines, version: str, asked: Sequence[list[dict[str, str]]], answered: Sequence[dict[str, Any]]
) -> list[Told]:
    told = []
    for messages, answer in zip(asked, answered, strict=True):
        choice = answer["choices"][0]
        text, tokens = choice["message"]["content"] or "", answer["usage"]["completion_tokens"]
        told.append(Told(answer["id"], baselines.measure(version, messages, text, choice["finish_reason"], tokens)))
    return told


def first_alarm(baseline: Baseline, before: list[Told], after: list[Told]) -> Noticed:
    """Run all detectors over one order of conversations."""
    scalars: dict[str, ScalarDetector] = {}
    vectors = {name: VectorDetector.fresh(name, RUN_LENGTH) for name in (PROMPTS, REPLIES)}
    for number, told in enumerate([*before, *after], start=1):
        for name, value in told.measured.signals.items():
            if name not in scalars:
                scalars[name] = ScalarDetector.fresh(name, RUN_LENGTH, baseline.values.get(name))
            scalars[name].observe(value, told.id, "")
        pair = np.frombuffer(told.measured.vectors, dtype=np.float16).reshape(2, -1)
        for seen, vector in zip(vectors.values(), pair, strict=True):
            seen.observe(vector, told.id, "")
        detectors: list[ScalarDetector | VectorDetector] = [*scalars.values(), *vectors.values()]
        if alarmed := [one.signal for one in detectors if one.since is not None]:
            return Noticed(number - len(before), ", ".join(alarmed))
    return Noticed(None, None)


def tone_alarm(baseline: Baseline, before: list[Told], after: list[Told]) -> Noticed:
    detector = ScalarDetector.fresh("tone", RUN_LENGTH, baseline.values["tone"])
    for number, told in enumerate([*before, *after], start=1):
        if "tone" in told.measured.signals:
            detector.observe(told.measured.signals["tone"], told.id, "")
        if detector.since is not None:
            return Noticed(number - len(before), "tone")
    return Noticed(None, None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="name@digest12 with a drift reference")
    parser.add_argument("--same", type=Path, required=True, help="conversations of the kind it was trained for")
    parser.add_argument("--other", type=Path, required=True, help="conversations of another kind")
    parser.add_argument("--most", type=int, default=400, help="conversations to take of each file")
    parser.add_argument("--url", help="a running server; without it one is started on POLYTONE_HOME")
    options = parser.parse_args()
    home = home_from_environment()
    with server(options.url, home, home.root / "logs" / "shift.log") as url:
        base = base_of(url)
        baselines = Baselines(home, partial(token_embedding, base_folder(home, base) / "source"), lambda _: [])
        baseline = baselines.of(options.version)
        if not baseline.values:
            raise SystemExit(f"{options.version} has no drift reference.")
        told = ask_all(url, options, baselines, baseline, base)
    return report(baseline, *told)


def ask_all(
    url: str, options: argparse.Namespace, baselines: Baselines, baseline: Baseline, base: str
) -> tuple[list[Told], list[Told], list[Told]]:
    """Same and other kind by the voice, and the same kind by the base in its place."""
    same, other = prompts(options.same, options.most), prompts(options.other, options.most)
    tokens = baseline.max_tokens or 64

    def told(model: str, asked: Sequence[list[dict[str, str]]]) -> list[Told]:
        print(f"{model}: {len(asked)} conversations ...", flush=True)
        return measured(baselines, options.version, asked, asyncio.run(answers(url, model, asked, tokens)))

    return told(options.version, same), told(options.version, other), told(base, same[:BASE_WITHIN])


def report(baseline: Baseline, same: list[Told], other: list[Told], base: list[Told]) -> int:
    """Print a table; 0 if every demand holds."""
    print(f"| shuffle | the same kind, {len(same)} | then the other kind | the base after {BEFORE} |")
    print("|---|---|---|---|")
    holds = True
    for number in range(SHUFFLES):
        chance = random.Random(number)  # noqa: S311 - the same orders in every run
        orders = [chance.sample(kind, len(kind)) for kind in (same, other, base)]
        quiet = first_alarm(baseline, orders[0], [])
        topics = first_alarm(baseline, orders[0], orders[1])
        tone = tone_alarm(baseline, orders[0][:BEFORE], orders[2])
        holds &= quiet.after is None
        holds &= topics.after is not None and 0 < topics.after <= NEW_TOPICS_WITHIN
        holds &= tone.after is not None and 0 < tone.after <= BASE_WITHIN
        print(f"| {number + 1} | {in_words(quiet)} | {in_words(topics)} | {in_words(tone)} |")
    print("holds" if holds else "does NOT hold")
    return 0 if holds else 1


def in_words(noticed: Noticed) -> str:
    return "no alarm" if noticed.after is None else f"{noticed.signal} after {noticed.after}"


if __name__ == "__main__":
    sys.exit(main())
