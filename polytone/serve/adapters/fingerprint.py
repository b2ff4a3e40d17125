"""Verification: compare the engine's answers with a version's fingerprint, the trainer's answers to a few probes.

Each probe is answered greedily and compared token by token: the same token with the same log-probability. Where two
tokens are so close that rounding may choose either, the comparison of that probe ends. The probes are ordinary requests
of a few tokens: running streams share their steps and are not held up. (Scoring the trainer's tokens in one prefill
would take fewer steps, but asks for log-probabilities of a prompt, and vLLM 0.32 mixes up rows there when another
request with an adapter is in the batch; on a CPU that ends the engine.)
"""

import asyncio
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from polytone.contract.errors import CheckError
from polytone.contract.manifest import Manifest, Probe
from polytone.serve.engine.base import Body, Engine

# In nats. float32 against float32 differs by rounding only; bfloat16 moves a log-probability by some hundredths.
MEAN_TOLERANCE = {"float32": 0.01, "bfloat16": 0.1}
TIE = {"float32": 0.005, "bfloat16": 0.15}
CANDIDATES = 5
LEAST_COMPARED = 0.5


@dataclass(frozen=True)
class Comparison:
    """One probe: tokens compared, their mean distance in nats, and the position of a token that differs."""

    compared: int
    distance: float
    differs_at: int | None


async def verify(engine: Engine, manifest: Manifest, first_token_only: bool = False) -> None:
    """Check that the engine answers a version's probes as the trainer's model did.

    Args:
        first_token_only: for a version that this engine verified before and loads again. Requests wait for this, and
            one token is enough to say which version it is: another's would have another probability.

    Raises:
        CheckError: `fingerprint_mismatch`, with the distance between the served and the trained model.
    """
    exact = engine.dtype == manifest.fingerprint.dtype == "float32"
    dtype = "float32" if exact else "bfloat16"
    probes = manifest.fingerprint.probes
    if first_token_only:
        probes = [first_token_of(probes[0])]
    answers = await asyncio.gather(*(answer(engine, manifest.version, probe) for probe in probes))
    compared = 0
    for number, (probe, served) in enumerate(zip(probes, answers, strict=True), start=1):
        result = compare(probe, served, TIE[dtype])
        compared += result.compared
        if result.differs_at is not None or result.distance > MEAN_TOLERANCE[dtype]:
            raise mismatch(manifest, f"probe {number}: {in_words(result)}")
    total = sum(len(probe.tokens) for probe in probes)
    if compared < LEAST_COMPARED * total:
        raise mismatch(manifest, f"only {compared} of {total} tokens could be compared")


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
    """Compare until the end of an answer, a tie that rounding decided otherwise, or a token that differs."""
    logprobs = served["logprobs"]
    distances: list[float] = []
    pairs = zip_longest(probe.tokens, served["token_ids"])
    for position, (trained, served_token) in enumerate(pairs):
        if served_token is None:  # the trainer's answer is longer
            return Comparison(position, mean(distances), position)
        if trained != served_token:
            best = float(logprobs["token_logprobs"][position])
            candidates = logprobs["top_logprobs"][position]
            trained_logprob = candidates.get(f"token_id:{trained}")
            tied = trained_logprob is not None and best - float(trained_logprob) <= tie
            return Comparison(position, mean(distances), None if tied else position)
        distances.append(abs(float(logprobs["token_logprobs"][position]) - probe.logprobs[position]))
    return Comparison(len(probe.tokens), mean(distances), None)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def in_words(result: Comparison) -> str:
    if result.differs_at is not None:
        return f"token {result.differs_at + 1} differs from the trainer's"
    return f"its log-probabilities differ from the trainer's by {result.distance:.3f} nats a token"


def mismatch(manifest: Manifest, difference: str) -> CheckError:
    return CheckError(
        f"{manifest.version}: the engine does not serve what was trained: {difference}.", code="fingerprint_mismatch"
    )
