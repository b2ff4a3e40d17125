"""Has what a voice says changed? Detectors with a stated mean run length until a chance alarm.

Signals in [0, 1] (a rate, a tone score, a length) are watched by `SequentialTest`: each conversation gives one
value, and the detector alarms when their mean rises above what the reference allows. A fall is a rise of one minus the
value. Embeddings are watched by `windows`.

One observation per conversation: the turns of one are alike, and counting each of them takes one odd conversation for
a change. States are frozen and hold numbers only; every step returns the next state.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]

RUN_LENGTH = 20_000.0  # conversations
DELTA = 0.05
ORDERS = 20
HALVINGS = 30
BOLDEST = 0.95  # of the largest bet that cannot lose everything
BETS = 10
MOST = 1e12


def upper_bound(values: ArrayLike, delta: float = DELTA) -> float:
    """A number that the mean of a variable in [0, 1] exceeds with probability `delta` at most.

    `values` (n,) are independent draws of the variable. A lower bound is `1 - upper_bound(1 - values)`. The bound
    adapts to the variance and holds for every n; for n zeros it is about `1 - delta ** (1 / n)`, the exact bound of a
    rate. Against every candidate mean runs a bet that the values lie below it; if it is the mean, the bet's capital
    reaches 1 / delta with probability delta at most. The bound is the largest candidate whose bet does not.
    (Waudby-Smith and Ramdas 2023, "Estimating means of bounded random variables by betting": the predictable plug-in
    for a fixed n, the capital averaged over some orders of the values, so that theirs hardly matters.)

    Raises:
        ValueError: there are no values, one is outside [0, 1], or `delta` is not inside (0, 1).
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not x.size or not ((x >= 0) & (x <= 1)).all() or not 0 < delta < 1:
        raise ValueError("needs some values in [0, 1] and a delta inside (0, 1)")
    orders = np.random.default_rng(0).permuted(np.tile(x, (ORDERS, 1)), axis=1)
    bets = plug_in(orders, delta)
    # The larger the candidate, the larger each factor of the capital: halving finds the bound.
    return least(lambda mean: capital(orders, bets, mean) >= 1 / delta)


def plug_in(x: Floats, delta: float) -> Floats:
    """The bet (..., n) on each of `x` (..., n), from those before it: the more they vary, the smaller."""
    n = x.shape[-1]
    seen = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(x, axis=-1)) / (seen + 1)
    squares = (x - means) ** 2
    variances = (0.25 + np.cumsum(squares, axis=-1) - squares) / seen
    return np.asarray(np.sqrt(2 * math.log(1 / delta) / (n * variances)))


def capital(x: Floats, bets: Floats, mean: float) -> float:
    """What 1 becomes by `bets` (orders, n) that `x` (orders, n) lie below `mean`, inside (0, 1); the orders' mean."""
    fair = np.minimum(bets, BOLDEST / (1 - mean))
    with np.errstate(over="ignore", under="ignore"):
        return float(np.prod(1 + fair * (mean - x), axis=-1).mean())


def least(holds: Callable[[float], bool]) -> float:
    """Where in [0, 1] something begins to hold that goes on from there; 1 if it never does."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def upper_rate_bound(hits: int, of: int, delta: float = DELTA) -> float:
    """As `upper_bound`, tighter, where every value is 0 or 1 and `hits` `of` them are 1; the lower bound is
    `1 - upper_rate_bound(of - hits, of)`. (Clopper and Pearson 1934, exact.)

    Raises:
        ValueError: there are no values, more hits than values, or `delta` is not inside (0, 1).
    """
    if not 0 <= hits <= of or not of or not 0 < delta < 1:
        raise ValueError("needs some values, no more hits than these, and a delta inside (0, 1)")
    return 1.0 if hits == of else least_rate(hits + 1, of, 1 - delta)


def least_rate(hits: int, of: int, probability: float) -> float:
    """The rate at which `hits` or more `of` so many come with this probability."""
    return least(lambda rate: at_least(hits, of, rate) >= probability)


def at_least(hits: int, of: int, rate: float) -> float:
    """P(Binomial(of, rate) >= hits) for a rate inside (0, 1)."""
    number = np.arange(1, of + 1)
    choose = np.concatenate([[0], np.cumsum(np.log((of - number + 1) / number))])
    k = np.arange(of + 1)
    return float(np.exp(choose + k * math.log(rate) + (of - k) * math.log1p(-rate))[hits:].sum())


def bets(mean: ArrayLike, run_length: float) -> Floats:
    """Bets (..., K) on a rise above `mean` (...), from the smallest worth noticing to nearly the largest fair one.

    A rise by e is noticed after about 2 log(run_length) m (1 - m) / e² observations and best by a bet of
    e / (m (1 - m)). The smallest bet is best for a rise that takes a quarter of the run length.
    """
    m = np.asarray(mean, dtype=np.float64)[..., None]
    odds = m / np.maximum(1 - m, 1e-9)
    smallest = np.minimum(np.sqrt(8 * math.log(run_length) * odds / run_length), BOLDEST / 2)
    return np.asarray(smallest * (BOLDEST / smallest) ** (np.arange(BETS) / (BETS - 1)) / m)


def factors(mean: ArrayLike, bets: Floats, x: ArrayLike) -> Floats:
    """What each bet (..., K) on a rise above `mean` (...) makes of its stake when `x` (...) comes: 1 on average, or
    less, while the mean is no higher."""
    rise = np.asarray(x, dtype=np.float64) - np.asarray(mean)
    return np.asarray(1 + bets * rise[..., None])


def advanced(evidence: Floats, factors: Floats) -> Floats:
    """The evidence (..., K) after one more observation: at each a new unit is staked beside what the old ones became.

    Capped, which takes evidence away and never adds any.
    """
    return np.asarray(np.minimum((evidence + 1) * factors, MOST))


def statistic(evidence: Floats) -> Floats:
    """What is held against the run length, (...) of evidence (..., K): the bets' mean."""
    return np.asarray(evidence.mean(axis=-1))


@dataclass(frozen=True)
class SequentialTest:
    """Watches for the mean of a variable in [0, 1] to rise above `mean`; O(1) memory.

    A mixture of Shiryaev-Roberts e-detectors (Shin, Ramdas and Rinaldo 2023, "E-detectors: a nonparametric framework
    for sequential change detection"). While each observation's mean, given those before, is `mean` at most, the first
    alarm comes after `run_length` observations on average or later, and among n observations with a fresh start after
    every alarm there are at most n / run_length alarms on average.

    Where `mean` is the `upper_bound` of a reference, that holds for all references but a share of `delta`, whose true
    mean is higher than their bound.

    `evidence`, `climbs` and `starts` are (K,): of each bet the e-detector, its CUSUM, and the observation from which
    the CUSUM has climbed. `since` is set by the first alarm and stays: the observation, counted from 1, with which the
    change probably began.
    """

    mean: float
    run_length: float
    evidence: tuple[float, ...]
    climbs: tuple[float, ...]
    starts: tuple[int, ...]
    seen: int = 0
    since: int | None = None

    @classmethod
    def fresh(cls, mean: float, run_length: float = RUN_LENGTH) -> Self:
        """Nothing seen yet.

        Raises:
            ValueError: `mean` or `run_length` is out of range.
        """
        if not 0 < mean <= 1 or not 1 < run_length < MOST / BETS:
            raise ValueError(f"mean in (0, 1], run length in (1, {MOST / BETS:g}), not {mean} and {run_length}")
        return cls(mean, run_length, (0.0,) * BETS, (0.0,) * BETS, (1,) * BETS)

    def step(self, x: float) -> Self:
        """The state after one more observation.

        Raises:
            ValueError: `x` is not in [0, 1].
        """
        if not 0 <= x <= 1:
            raise ValueError(f"an observation lies in [0, 1], not {x}")
        by = factors(self.mean, bets(self.mean, self.run_length), x)
        evidence = advanced(np.array(self.evidence), by)
        before = np.array(self.climbs)
        climbs = np.minimum(np.maximum(before, 1) * by, MOST)
        starts = np.where(before <= 1, self.seen + 1, self.starts)
        since = self.since
        if since is None and statistic(evidence) >= self.run_length:
            since = int(starts[climbs.argmax()])
        return replace(
            self,
            evidence=tuple(evidence.tolist()),
            climbs=tuple(climbs.tolist()),
            starts=tuple(starts.tolist()),
            seen=self.seen + 1,
            since=since,
        )

    @property
    def statistic(self) -> float:
        """An alarm when it reaches the run length."""
        return float(statistic(np.array(self.evidence)))

    @property
    def alarmed(self) -> bool:
        return self.since is not None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        lists = {name: tuple(found[name]) for name in ("evidence", "climbs", "starts")}
        return cls(**{**found, **lists})


def expected_chance_alarms(observations: float, run_length: float) -> float:
    """How many alarms `observations` without a change raise on average, at most; detectors start anew after each."""
    return observations / run_length


def smallest_change(mean: float, run_length: float, within: int, power: float = 0.8) -> float | None:
    """The smallest rate above `mean` that a `SequentialTest` detects within `within` steps with probability `power`.

    None where even 1 is not noticed in time. An approximation, on the safe side: hits come spread evenly, and only the
    last observation may raise the alarm. Of all variables with a given mean a rate is noticed last.
    """
    hits = np.arange(within + 1)
    chosen = bets(mean, run_length)
    by_hit, by_miss = np.log(factors(mean, chosen, 1)), np.log(factors(mean, chosen, 0))
    growth = np.outer(hits, by_hit) + np.outer(within - hits, by_miss)
    noticed = statistic(spread_evenly(np.minimum(growth, math.log(MOST)), within)) >= run_length
    return max(mean, least_rate(int(noticed.argmax()), within, power)) if noticed.any() else None


def spread_evenly(growth: Floats, steps: int) -> Floats:
    """The evidence after `steps` equal factors whose logarithms sum to `growth`."""
    each = np.where(np.abs(growth) < 1e-9, 1e-9, growth) / steps
    return np.asarray(np.expm1(each * steps) / -np.expm1(-each))
