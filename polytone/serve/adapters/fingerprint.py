"""Prove that the engine serves the very model that was trained: compare it with the version's fingerprint.

Each probe is answered greedily, as the trainer's model answered it, and compared token by token: the same token with
the same log-probability. Where two tokens are so close that rounding may choose either, the comparison of that probe
ends. The probes are ordinary requests of a few tokens: running streams share their steps and are not held up.
(Scoring the trainer's tokens in one prefill would be fewer steps, but asks for log-probabilities of a prompt, and vLLM
0.32 mixes up rows there when another request with an adapter is in the batch; on a CPU that ends the engine.)
"""

import asyncio
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from polytone.contract.errors import CheckError
from polytone.contract.manifest import Manifest, Probe
from polytone.serve.engine.base import Body, Engine

# Nats. float32 against float32 differs by rounding only; bfloat16 moves a token's log-probability by some hundredths.
MEAN_TOLERANCE = {"float32": 0.01, "bfloat16": 0.1}
TIE = {"float32": 0.005, "bfloat16": 0.15}
CANDIDATES = 5
ENOUGH = 0.5


@dataclass(frozen=True)
class Comparison:
    """How far served and trained agree: tokens compared, their mean distance in nats, and where a token differed."""

    compared: int
    distance: float
    differs_at: int | None


async def verify(engine: Engine, manifest: Manifest, again: bool = False) -> None:
    """Compare every probe; of a version that was proven on this engine before, `again` the first token of one.

    Whoever waits for a version that comes back waits for this too, and one token says which version it is: another's
    would have another probability.

    Raises:
        CheckError: `fingerprint_mismatch`, saying how far served and trained are apart.
    """
    exact = engine.dtype == manifest.fingerprint.dtype == "float32"
    dtype = "float32" if exact else "bfloat16"
    asked = [first_token_of(manifest.fingerprint.probes[0])] if again else manifest.fingerprint.probes
    answers = await asyncio.gather(*(answer(engine, manifest.version, probe) for probe in asked))
    compared = 0
    for number, (probe, served) in enumerate(zip(asked, answers, strict=True), start=1):
        result = compare(probe, served, TIE[dtype])
        compared += result.compared
        if result.differs_at is not None or result.distance > MEAN_TOLERANCE[dtype]:
            raise mismatch(manifest, f"probe {number}: {in_words(result)}")
    wanted = sum(len(probe.tokens) for probe in asked)
    if compared < ENOUGH * wanted:
        raise mismatch(manifest, f"only {compared} of {wanted} tokens could be compared")


def first_token_of(probe: Probe) -> Probe:
    return probe.model_copy(update={"tokens": probe.tokens[:1], "logprobs": probe.logprobs[:1]})


async def answer(engine: Engine, version: str, probe: Probe) -> Body:
    request: dict[str, Any] = {
        "prompt": probe.prompt_tokens,
        "max_tokens": len(probe.tokens),
        "temperature": 0,
        "logprobs": CANDIDATES,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    response = await engine.complete(request, version)
    if not isinstance(response, dict):
        raise TypeError("asked for a response, got a stream")
    return dict(response["choices"][0])


def compare(probe: Probe, served: Body, tie: float) -> Comparison:
    """Walk both answers to their end, to a tie that rounding decided otherwise, or to a real difference."""
    logprobs = served["logprobs"]
    apart: list[float] = []
    pairs = zip_longest(probe.tokens, served["token_ids"])
    for position, (trained, given) in enumerate(pairs):
        if given is None:  # the trainer's answer goes on where the served one ended
            return Comparison(position, mean(apart), position)
        if trained != given:
            best = float(logprobs["token_logprobs"][position])
            candidates = logprobs["top_logprobs"][position]
            other = candidates.get(f"token_id:{trained}")
            tied = other is not None and best - float(other) <= tie
            return Comparison(position, mean(apart), None if tied else position)
        apart.append(abs(float(logprobs["token_logprobs"][position]) - probe.logprobs[position]))
    return Comparison(len(probe.tokens), mean(apart), None)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def in_words(result: Comparison) -> str:
    if result.differs_at is not None:
        return f"token {result.differs_at + 1} is another one than the trainer's"
    return f"log-probabilities are {result.distance:.3f} nats a token from the trainer's"


def mismatch(manifest: Manifest, what: str) -> CheckError:
    return CheckError(
        f"{manifest.version}: the engine does not serve what was trained: {what}.", code="fingerprint_mismatch"
    )
