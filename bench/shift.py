"""Detection of real shifts: real conversations from files, answered by a real voice and replayed in shuffled orders.

    python -m bench.shift VERSION --same same.jsonl --other other.jsonl

One turn of each conversation, chosen by its content, is put to the voice and to its bare base. Then the detectors
observe, in five orders each: the same kind of conversations (there should be no alarm), these and then the other kind
(there should be an alarm within 150), and the voice and then its base in its place (tone should raise an alarm within
60). The first 200 conversations are the reference of the topics.
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
class MeasuredAnswer:
    """One answer, measured as the server measures it."""

    id: str
    measured: AnswerSignals


@dataclass(frozen=True)
class FirstAlarm:
    """The first alarm: how many conversations after the change, and on which signals; None if there was none."""

    after: int | None
    signal: str | None


def prompts(path: Path, most: int) -> list[list[dict[str, str]]]:
    """The messages of each conversation up to one of the user's turns."""
    histories = []
    for row in read_conversations(path).rows[:most]:
        messages = row.as_dicts()
        number = int(hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:8], 16)
        user_turns = [i for i, message in enumerate(messages) if message["role"] == "user"]
        histories.append(messages[: user_turns[number % len(user_turns)] + 1])
    return histories


async def answers(url: str, model: str, prompts: Sequence[list[dict[str, str]]], tokens: int) -> list[dict[str, Any]]:
    """The answers to all prompts, `STREAMS` at a time, with the voice's default sampling.

    Each has a seed of its own: with a common seed, the same draws would choose the first words of every reply.
    """
    gate = asyncio.Semaphore(STREAMS)

    async def ask(client: httpx.AsyncClient, seed: int, messages: list[dict[str, str]]) -> dict[str, Any]:
        async with gate:
            body = {"model": model, "messages": messages, "max_tokens": tokens, "seed": seed}
            response = await client.post(f"{url}/v1/chat/completions", json=body)
            return dict(response.raise_for_status().json())

    async with httpx.AsyncClient(timeout=900) as client:
        return list(await asyncio.gather(*(ask(client, *numbered) for numbered in enumerate(prompts))))


def measure_all(
    baselines: Baselines, version: str, prompts: Sequence[list[dict[str, str]]], answered: Sequence[dict[str, Any]]
) -> list[MeasuredAnswer]:
    measurements = []
    for messages, answer in zip(prompts, answered, strict=True):
        choice = answer["choices"][0]
        text, tokens = choice["message"]["content"] or "", answer["usage"]["completion_tokens"]
        measurements.append(
            MeasuredAnswer(answer["id"], baselines.measure(version, messages, text, choice["finish_reason"], tokens))
        )
    return measurements


def first_alarm(baseline: Baseline, before: list[MeasuredAnswer], after: list[MeasuredAnswer]) -> FirstAlarm:
    """Run all detectors on one order of conversations."""
    scalars: dict[str, ScalarDetector] = {}
    vectors = {name: VectorDetector.fresh(name, RUN_LENGTH) for name in (PROMPTS, REPLIES)}
    for number, answer in enumerate([*before, *after], start=1):
        for name, value in answer.measured.signals.items():
            if name not in scalars:
                scalars[name] = ScalarDetector.fresh(name, RUN_LENGTH, baseline.values.get(name))
            scalars[name].observe(value, answer.id, "")
        pair = np.frombuffer(answer.measured.vectors, dtype=np.float16).reshape(2, -1)
        for topics, vector in zip(vectors.values(), pair, strict=True):
            topics.observe(vector, answer.id, "")
        detectors: list[ScalarDetector | VectorDetector] = [*scalars.values(), *vectors.values()]
        if alarmed := [one.signal for one in detectors if one.since is not None]:
            return FirstAlarm(number - len(before), ", ".join(alarmed))
    return FirstAlarm(None, None)


def tone_alarm(baseline: Baseline, before: list[MeasuredAnswer], after: list[MeasuredAnswer]) -> FirstAlarm:
    detector = ScalarDetector.fresh("tone", RUN_LENGTH, baseline.values["tone"])
    for number, answer in enumerate([*before, *after], start=1):
        if "tone" in answer.measured.signals:
            detector.observe(answer.measured.signals["tone"], answer.id, "")
        if detector.since is not None:
            return FirstAlarm(number - len(before), "tone")
    return FirstAlarm(None, None)


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
        answer_sets = ask_all(url, options, baselines, baseline, base)
    return report(baseline, *answer_sets)


def ask_all(
    url: str, options: argparse.Namespace, baselines: Baselines, baseline: Baseline, base: str
) -> tuple[list[MeasuredAnswer], list[MeasuredAnswer], list[MeasuredAnswer]]:
    """Answers of the voice to both kinds of conversations, and of the base to the same kind."""
    same, other = prompts(options.same, options.most), prompts(options.other, options.most)
    tokens = baseline.max_tokens or 64

    def replay(model: str, prompts: Sequence[list[dict[str, str]]]) -> list[MeasuredAnswer]:
        print(f"{model}: {len(prompts)} conversations ...", flush=True)
        return measure_all(baselines, options.version, prompts, asyncio.run(answers(url, model, prompts, tokens)))

    return replay(options.version, same), replay(options.version, other), replay(base, same[:BASE_WITHIN])


def report(
    baseline: Baseline, same: list[MeasuredAnswer], other: list[MeasuredAnswer], base: list[MeasuredAnswer]
) -> int:
    """Print a table; returns 0 if all expectations hold, else 1."""
    print(f"| order | same kind, {len(same)} conversations | then the other kind | base after {BEFORE} conversations |")
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


def in_words(alarm: FirstAlarm) -> str:
    return "no alarm" if alarm.after is None else f"{alarm.signal} after {alarm.after}"


if __name__ == "__main__":
    sys.exit(main())
