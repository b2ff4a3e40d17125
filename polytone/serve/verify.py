"""Prove that the engine serves the very model that was trained: compare it with the version's fingerprint.

The trainer's greedy tokens are fed back in one prefill per probe. If the engine's most likely token equals the
trainer's at every position, its greedy answer is the trainer's, by induction over positions.
"""

from typing import Any

from polytone.contract.adapter import Manifest, Probe
from polytone.contract.errors import CheckError

from .engine import Engine

# Nats. float32 against float32 differs by rounding only; bfloat16 moves a token's log-probability by some hundredths.
MEAN_LOGPROB_TOLERANCE = {"float32": 0.01, "bfloat16": 0.1}
# Two tokens closer than this are a tie that rounding may break either way.
TIE = 0.005


async def verify(engine: Engine, manifest: Manifest) -> None:
    """Compare every probe.

    Raises:
        CheckError: `fingerprint_mismatch`, saying how far served and trained are apart.
    """
    for number, probe in enumerate(manifest.fingerprint.probes, start=1):
        served, greedy = await score(engine, manifest.version, probe)
        exact = engine.dtype == manifest.fingerprint.dtype == "float32"
        tolerance = MEAN_LOGPROB_TOLERANCE["float32" if exact else "bfloat16"]
        distance = abs(served - probe.mean_logprob)
        if distance > tolerance or (exact and not greedy):
            raise CheckError(
                f"{manifest.version}: the engine does not serve what was trained. Probe {number}: mean "
                f"log-probability {served:.3f}, the trainer got {probe.mean_logprob:.3f} (bare base "
                f"{probe.base_mean_logprob:.3f}), greedy tokens {'equal' if greedy else 'differ'}.",
                code="fingerprint_mismatch",
            )


async def score(engine: Engine, version: str, probe: Probe) -> tuple[float, bool]:
    """Mean log-probability (nats) the engine gives the probe's tokens, and whether each was its first choice."""
    request: dict[str, Any] = {
        "prompt": [*probe.prompt_tokens, *probe.tokens],
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 1,
    }
    response = await engine.complete(request, version)
    if not isinstance(response, dict):
        raise TypeError("asked for a response, got a stream")
    entries = response["choices"][0]["prompt_logprobs"][len(probe.prompt_tokens) :]
    total, greedy = 0.0, True
    for token, entry in zip(probe.tokens, entries, strict=True):
        logprob = {int(key): float(value["logprob"]) for key, value in entry.items()}
        total += logprob[token]
        best, *_ = sorted(logprob.values(), reverse=True)
        greedy = greedy and best - logprob[token] <= TIE
    return total / len(probe.tokens), greedy
