"""Bootstrap confidence intervals that resample whole conversations, whose turns and tokens are not independent.

The percentile interval of the bootstrap (Efron 1979) is too narrow for few conversations. Its percentiles are moved
outwards so that it is as wide as Student's (Hesterberg 2015, "What Teachers Should Know About the Bootstrap": the
expanded percentile interval).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000
LEAST_CONVERSATIONS = 2


@dataclass(frozen=True)
class Sample:
    """A figure's parts by conversation: the figure is the sum of `sums` over the sum of `counts`, both (n,).

    For a mean over conversations every count is 1; for a loss per token the counts are tokens.
    """

    sums: Floats
    counts: Floats

    @property
    def value(self) -> float:
        return float(ratio(self.sums, self.counts))

    def __len__(self) -> int:
        return len(self.sums)


@dataclass(frozen=True)
class Interval:
    """A figure with the bounds between which it lies with a confidence of `CONFIDENCE`."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        return {"value": round(self.value, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


def mean_of(values: Any) -> Sample:
    """A sample whose figure is the mean of `values`, one for each conversation."""
    sums = np.asarray(values, dtype=np.float64)
    return Sample(sums, np.ones_like(sums))


def interval(sample: Sample, seed: int = 0) -> Interval:
    """The figure of a sample with its interval.

    Raises:
        ValueError: fewer than two conversations.
    """
    return bootstrapped(ratio, (sample.sums, sample.counts), seed)


def difference(one: Sample, other: Sample, seed: int = 0) -> Interval:
    """`one` minus `other`, measured on the same conversations: both are resampled together.

    Raises:
        ValueError: they are not of the same conversations, or of fewer than two.
    """
    if len(one) != len(other):
        raise ValueError(f"{len(one)} and {len(other)} conversations cannot be paired")
    return bootstrapped(ratio_difference, (one.sums, one.counts, other.sums, other.counts), seed)


def ratio(sums: Floats, counts: Floats, axis: int = -1) -> Floats:
    return np.asarray(sums.sum(axis=axis) / counts.sum(axis=axis))


def ratio_difference(sums: Floats, counts: Floats, other_sums: Floats, other_counts: Floats, axis: int = -1) -> Floats:
    return ratio(sums, counts, axis) - ratio(other_sums, other_counts, axis)


def bootstrapped(statistic: Callable[..., Floats], parts: tuple[Floats, ...], seed: int) -> Interval:
    """The statistic of `parts`, arrays of one value a conversation that are resampled together."""
    from scipy.stats import bootstrap

    count = len(parts[0])
    if count < LEAST_CONVERSATIONS:
        raise ValueError(f"an interval needs at least {LEAST_CONVERSATIONS} conversations, not {count}")
    resampled = bootstrap(
        parts,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        confidence_level=1 - 2 * expanded_tail(count),
        rng=np.random.default_rng(seed),
    )
    value = float(statistic(*parts))
    low, high = (float(bound) for bound in resampled.confidence_interval)
    return Interval(value, min(low, value), max(high, value))


def expanded_tail(count: int) -> float:
    """The share to leave out at each end for `count` conversations; `(1 - CONFIDENCE) / 2` for very many."""
    from scipy.special import ndtr, stdtrit

    student = float(stdtrit(count - 1, (1 - CONFIDENCE) / 2))
    return float(ndtr(math.sqrt(count / (count - 1)) * student))
