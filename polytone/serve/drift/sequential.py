"""Sequential tests of signals in [0, 1] (a rate, a tone score, a length), with a stated mean run length.

The run length is the mean number of conversations until an alarm by chance. Each conversation gives one value, and a
`SequentialTest` raises an alarm when the mean of the values rises above what the reference allows. A fall is a rise of
one minus the value. Embeddings have tests of their own in `mmd`.

One observation per conversation: turns of one conversation are alike, and counting each of them would take one odd
conversation for a change. States are frozen and hold numbers only; every step returns the next state.
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
BOLDEST = 0.95  # share of the largest bet that cannot lose everything
BETS = 10
MOST = 1e12


def upper_bound(values: ArrayLike, delta: float = DELTA) -> float:
    """An upper confidence bound of the mean of a variable in [0, 1]: the mean exceeds it with probability <= `delta`.

    `values` (n,) are independent draws of the variable. A lower bound is `1 - upper_bound(1 - values)`. The bound
    adapts to the variance and holds for every n; for n zeros it is about `1 - delta ** (1 / n)`, the exact bound of a
    rate. For every candidate mean there is a bet that the values lie below it; if the candidate is the true mean, the
    bet's capital reaches 1 / delta with probability <= delta. The bound is the largest candidate whose capital does
    not. (Waudby-Smith and Ramdas 2023, "Estimating means of bounded random variables by betting": the predictable
    plug-in for a fixed n. The capital is averaged over several orders of the values, so that their order hardly
    matters.)

    Raises:
        ValueError: there are no values, one is outside [0, 1], or `delta` is not inside (0, 1).
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not x.size or not ((x >= 0) & (x <= 1)).all() or not 0 < delta < 1:
        raise ValueError("needs values in [0, 1] and a delta inside (0, 1)")
    orders = np.random.default_rng(0).permuted(np.tile(x, (ORDERS, 1)), axis=1)
    bets = plug_in(orders, delta)
    return bisect(lambda mean: capital(orders, bets, mean) >= 1 / delta)


def plug_in(x: Floats, delta: float) -> Floats:
    """Bets (..., n) on each of `x` (..., n), each made from the values before it: the more they vary, the smaller."""
    n = x.shape[-1]
    seen = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(x, axis=-1)) / (seen + 1)
    squares = (x - means) ** 2
    variances = (0.25 + np.cumsum(squares, axis=-1) - squares) / seen
    return np.asarray(np.sqrt(2 * math.log(1 / delta) / (n * variances)))


def capital(x: Floats, bets: Floats, mean: float) -> float:
    """Final capital of `bets` (orders, n) that `x` (orders, n) lie below `mean`, from 1; averaged over the orders.

    It grows with `mean`, which lies inside (0, 1).
    """
    fair = np.minimum(bets, BOLDEST / (1 - mean))
    with np.errstate(over="ignore", under="ignore"):
        return float(np.prod(1 + fair * (mean - x), axis=-1).mean())


def bisect(holds: Callable[[float], bool]) -> float:
    """The smallest number in [0, 1] from which on `holds` is true, by bisection; 1 if it never is."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def upper_rate_bound(hits: int, count: int, delta: float = DELTA) -> float:
    """As `upper_bound`, but exact, for a rate: `hits` of `count` values are 1 and the others 0.

    The lower bound is `1 - upper_rate_bound(count - hits, count)`. (Clopper and Pearson 1934)

    Raises:
        ValueError: there are no values, more hits than values, or `delta` is not inside (0, 1).
    """
    if not 0 <= hits <= count or not count or not 0 < delta < 1:
        raise ValueError("needs values, no more hits than values, and a delta inside (0, 1)")
    return 1.0 if hits == count else rate_reaching(hits + 1, count, 1 - delta)


def rate_reaching(hits: int, count: int, probability: float) -> float:
    """The rate at which at least `hits` of `count` values are 1 with this probability; `hits` is 1 or more."""
    from scipy.special import betaincinv

    return float(betaincinv(hits, count - hits + 1, probability))


def bets(mean: ArrayLike, run_length: float) -> Floats:
    """Bets (..., K) on a rise above `mean` (...), from the smallest useful one to nearly the largest fair one.

    A rise by e is detected after about 2 log(run_length) m (1 - m) / e² observations, and soonest by a bet of
    e / (m (1 - m)). The smallest bet is the best for a rise whose detection takes a quarter of the run length.
    """
    m = np.asarray(mean, dtype=np.float64)[..., None]
    odds = m / np.maximum(1 - m, 1e-9)
    smallest = np.minimum(np.sqrt(8 * math.log(run_length) * odds / run_length), BOLDEST / 2)
    return np.asarray(smallest * (BOLDEST / smallest) ** (np.arange(BETS) / (BETS - 1)) / m)


def factors(mean: ArrayLike, bets: Floats, x: ArrayLike) -> Floats:
    """Factors (..., K) by which an observation `x` (...) multiplies the stakes of `bets` on a rise above `mean` (...).

    They are at most 1 on average while the true mean is not above `mean`.
    """
    rise = np.asarray(x, dtype=np.float64) - np.asarray(mean)
    return np.asarray(1 + bets * rise[..., None])


def advanced(evidence: Floats, factors: Floats) -> Floats:
    """The evidence (..., K) after one more observation: with each, a new unit is staked beside the earlier ones.

    It is capped, which can only delay an alarm.
    """
    return np.asarray(np.minimum((evidence + 1) * factors, MOST))


def statistic(evidence: Floats) -> Floats:
    """The test statistic (...) that is compared with the run length: the mean of the evidence (..., K)."""
    return np.asarray(evidence.mean(axis=-1))


@dataclass(frozen=True)
class SequentialTest:
    """A test for a rise of the mean of a variable in [0, 1] above `mean`, in O(1) memory.

    A mixture of Shiryaev-Roberts e-detectors (Shin, Ramdas and Rinaldo 2023, "E-detectors: a nonparametric framework
    for sequential change detection"). As long as the mean of each observation, given those before, is at most `mean`,
    the first alarm comes after `run_length` observations on average or later; and n observations, with a fresh start
    after every alarm, raise at most n / run_length alarms on average.

    If `mean` is the `upper_bound` of a reference, this holds for all references except a share of `delta`, whose true
    mean is above their bound.

    `evidence`, `climbs` and `starts` are (K,): for each bet its e-detector, its CUSUM, and the observation at which the
    CUSUM began to climb. `since` is set by the first alarm and stays: the observation, counted from 1, with which the
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
        """The state before the first observation.

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
        """Raises an alarm when it reaches the run length."""
        return float(statistic(np.array(self.evidence)))

    @property
    def alarmed(self) -> bool:
        return self.since is not None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        lists = {name: tuple(state[name]) for name in ("evidence", "climbs", "starts")}
        return cls(**{**state, **lists})


def expected_chance_alarms(observations: float, run_length: float) -> float:
    """The mean number of alarms that `observations` without a change raise at most; detectors restart after each."""
    return observations / run_length


def smallest_change(mean: float, run_length: float, within: int, power: float = 0.8) -> float | None:
    """The smallest rate above `mean` that a `SequentialTest` detects within `within` steps with probability `power`.

    None if not even a rate of 1 is detected in time. The result is a cautious approximation: hits are spread evenly,
    and only the last observation may raise the alarm. Of all variables with the same mean, a rate is detected last.
    """
    hits = np.arange(within + 1)
    chosen = bets(mean, run_length)
    by_hit, by_miss = np.log(factors(mean, chosen, 1)), np.log(factors(mean, chosen, 0))
    growth = np.outer(hits, by_hit) + np.outer(within - hits, by_miss)
    detected = statistic(spread_evenly(np.minimum(growth, math.log(MOST)), within)) >= run_length
    return max(mean, rate_reaching(int(detected.argmax()), within, power)) if detected.any() else None


def spread_evenly(growth: Floats, steps: int) -> Floats:
    """The evidence after `steps` equal factors whose logarithms add up to `growth`."""
    each = np.where(np.abs(growth) < 1e-9, 1e-9, growth) / steps
    return np.asarray(np.expm1(each * steps) / -np.expm1(-each))
