"""Intervals by resampling whole conversations: turns and tokens of one conversation are not independent of each other.

The percentile interval of the bootstrap (Efron 1979) is too narrow for few conversations; its percentiles are moved out
so that it is as wide as Student's (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", expanded
percentile interval).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000
AT_ONCE = 200  # resamples held in memory together
FEWEST = 2


@dataclass(frozen=True)
class Sample:
    """A figure's parts by conversation: the figure is the sum of `sums` over the sum of `counts`, both (n,).

    For a mean over conversations every count is 1; for a loss per token the counts are tokens.
    """

    sums: Floats
    counts: Floats

    @property
    def value(self) -> float:
        return float(self.sums.sum() / self.counts.sum())

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
    drawn = np.concatenate([ratio(weights, sample) for weights in resamples(len(sample), seed)])
    return bounds(sample.value, drawn, len(sample))


def difference(one: Sample, other: Sample, seed: int = 0) -> Interval:
    """`one` minus `other`, measured on the same conversations: both are resampled together.

    Raises:
        ValueError: they are not of the same conversations, or of fewer than two.
    """
    if len(one) != len(other):
        raise ValueError(f"{len(one)} and {len(other)} conversations cannot be paired")
    drawn = np.concatenate([ratio(weights, one) - ratio(weights, other) for weights in resamples(len(one), seed)])
    return bounds(one.value - other.value, drawn, len(one))


def resamples(count: int, seed: int) -> Iterator[Floats]:
    """How often each of `count` conversations was drawn, (`AT_ONCE`, count) at a time; `RESAMPLES` in all."""
    if count < FEWEST:
        raise ValueError(f"an interval needs at least {FEWEST} conversations, not {count}")
    random = np.random.default_rng(seed)
    shares = np.full(count, 1 / count)
    for _ in range(RESAMPLES // AT_ONCE):
        yield random.multinomial(count, shares, size=AT_ONCE).astype(np.float64)


def ratio(weights: Floats, sample: Sample) -> Floats:
    return np.asarray((weights @ sample.sums) / np.maximum(weights @ sample.counts, 1e-12))


def bounds(value: float, drawn: Floats, count: int) -> Interval:
    tail = expanded_tail(count)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, min(float(low), value), max(float(high), value))


def expanded_tail(count: int) -> float:
    """The share to leave out at each end for `count` conversations; `(1 - CONFIDENCE) / 2` for very many."""
    from scipy.special import ndtr, stdtrit

    student = float(stdtrit(count - 1, (1 - CONFIDENCE) / 2))
    return float(ndtr(math.sqrt(count / (count - 1)) * student))
