"""How often the drift detectors alarm by chance, and how soon they notice a change: on simulated conversations.

`chance`: streams without a change, each with a reference drawn anew. The mean run length until the first alarm, cut at
a horizon, is held against the stated one. Where every turn counts as an observation, nothing is promised: that row
shows why the runtime takes one turn of a conversation. `power`: a share of the conversations changes after 200. Writes
drift.json. Exit code 1 if a mean run length is below the stated one.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.random import Generator

from polytone.serve.drift.mmd import BLOCK, LONG, level, window_p_values
from polytone.serve.drift.sequential import (
    BETS,
    RUN_LENGTH,
    Floats,
    advanced,
    bets,
    expected_chance_alarms,
    factors,
    smallest_change,
    statistic,
    upper_bound,
    upper_rate_bound,
)

Bound: TypeAlias = Callable[[Floats], float]
Draw: TypeAlias = Callable[[Generator, tuple[int, int]], Floats]

STREAMS = 2000
REFERENCES = (200, 40)
HORIZON = 3  # run lengths
STEPS_AT_ONCE = 200
MOST_TURNS = 11

EMBEDDING_STREAMS = 150
SHORT_RUN_LENGTH = 500
SHORT_HORIZON = 2
DIMENSION, FEW_DIMENSIONS = 64, 8
SHIFT = 6.0

SHARES = (0.1, 0.2, 0.4)
BEFORE, WITHIN = 200, 500


@dataclass(frozen=True)
class Kind:
    """A signal: `draw` gives (steps, streams) of it, its true `mean` is known, and `sides` are watched, 1 or 2.

    `bound` makes the detector's mean of a reference (n,).
    """

    name: str
    draw: Draw
    mean: float
    bound: Bound = upper_bound
    sides: int = 1
    promised: bool = True


@dataclass(frozen=True)
class Chance:
    """What one kind's streams without a change did. `misses`: the share of references with a bound below the mean."""

    signal: str
    reference: int | None
    stated: float
    horizon: int
    mean: float
    low: float
    high: float
    per_10_000: float
    misses: float | None
    promised: bool = True

    @property
    def holds(self) -> bool:
        return not self.promised or self.low >= self.stated

    def cells(self) -> Iterator[str]:
        yield self.signal
        yield "the mean itself" if self.reference is None else str(self.reference)
        yield f"{self.stated:,.0f}"
        yield f"{self.mean:,.0f} ({self.low:,.0f} to {self.high:,.0f})"
        yield f"{self.horizon:,}"
        yield f"{self.per_10_000:.2f}"
        yield "" if self.misses is None else f"{100 * self.misses:.1f} %"
        yield ("yes" if self.holds else "NO") if self.promised else "not promised"


CHANCE_HEADER = (
    "signal", "reference", "stated", "mean run length (95 %)", "cut at", "alarms per 10,000", "bound too low", "holds",
)  # fmt: skip


@dataclass(frozen=True)
class Power:
    """How one detector met one change: the share noticed within 500 conversations, and the median delay of those."""

    signal: str
    share: float
    detector: str
    noticed: float
    delay: float | None
    per_10_000: float

    def cells(self) -> Iterator[str]:
        yield self.signal
        yield f"{100 * self.share:.0f} %"
        yield self.detector
        yield f"{100 * self.noticed:.0f} %"
        yield "-" if self.delay is None else f"{self.delay:.0f}"
        yield f"{self.per_10_000:g}"


Row = TypeVar("Row", Chance, Power)

POWER_HEADER = ("signal", "changed", "detector", f"noticed within {WITHIN}", "median delay", "chance alarms per 10,000")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="chance, power; both by default")
    parser.add_argument("--out", type=Path, default=Path(".polytone/bench"), help="folder for drift.json")
    parser.add_argument("--streams", type=int, default=STREAMS, help="simulated streams of every signal")
    options = parser.parse_args()
    if unknown := set(options.rows) - {"chance", "power"}:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    rows, began = options.rows or ["chance", "power"], time.monotonic()
    found: dict[str, Any] = {"streams": options.streams}
    held = True
    if "chance" in rows:
        chances = list(shown(CHANCE_HEADER, chance(options.streams)))
        held = all(one.holds for one in chances)
        found["chance"] = [{**asdict(one), "holds": one.holds} for one in chances]
    if "power" in rows:
        found["power"] = [asdict(one) for one in shown(POWER_HEADER, power(options.streams))]
        found["smallest"] = smallest()
    found["seconds"] = time.monotonic() - began
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "drift.json").write_text(json.dumps(found, indent=1))
    print(f"{options.out / 'drift.json'}, {found['seconds']:.0f} s")
    return 0 if held else 1


def shown(header: Iterable[str], rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, each printed as a line of a Markdown table as soon as it is there."""
    header = list(header)
    print_row(header)
    print_row(["---"] * len(header))
    for row in rows:
        print_row(row.cells())
        yield row
    print()


def print_row(cells: Iterable[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def chance(streams: int) -> Iterator[Chance]:
    chances = np.random.default_rng(1)
    yield at_the_mean(chances, streams, 0.05)
    for kind in kinds():
        for reference in REFERENCES:
            yield with_references(chances, streams, kind, reference)
    for reference in REFERENCES:
        yield of_embeddings(chances, streams, reference)


def kinds() -> Iterator[Kind]:
    for percent in (2, 5, 20):
        yield Kind(f"rate {percent} %", partial(rate, percent / 100), percent / 100, bound_of_rate)
    yield Kind("beta(1/4, 1), mean 0.2", skewed, 0.2)
    yield Kind("length, both sides", lengths, 0.6, sides=2)
    yield Kind("one turn of each conversation", one_turn, MEAN_BADNESS)
    yield Kind("every turn", every_turn, MEAN_BADNESS, promised=False)


def bound_of_rate(values: Floats) -> float:
    return upper_rate_bound(int(values.sum()), len(values))


def rate(mean: float, chances: Generator, shape: tuple[int, int]) -> Floats:
    return np.asarray(chances.random(shape) < mean, dtype=np.float64)


def skewed(chances: Generator, shape: tuple[int, int]) -> Floats:
    return np.asarray(np.square(np.square(chances.random(shape))))


def lengths(chances: Generator, shape: tuple[int, int]) -> Floats:
    """Logarithms of lengths, on a scale from one token to the most."""
    return np.asarray(np.clip(0.6 + 0.1 * chances.standard_normal(shape), 0, 1))


# In few conversations most turns are bad, in the others hardly any.
TROUBLED, BADNESS = 0.08, (0.01, 0.6)
MEAN_BADNESS = (1 - TROUBLED) * BADNESS[0] + TROUBLED * BADNESS[1]


def badness(chances: Generator, shape: tuple[int, ...]) -> Floats:
    return np.asarray(np.where(chances.random(shape) < TROUBLED, BADNESS[1], BADNESS[0]))


def one_turn(chances: Generator, shape: tuple[int, int]) -> Floats:
    """Of each conversation's turns, one that was drawn."""
    turns = chances.random((MOST_TURNS, *shape)) < badness(chances, shape)
    length = 1 + chances.integers(MOST_TURNS, size=shape)
    drawn = (chances.random(shape) * length).astype(int)
    return np.asarray(np.take_along_axis(turns, drawn[None], axis=0)[0], dtype=np.float64)


def every_turn(chances: Generator, shape: tuple[int, int]) -> Floats:
    """All turns, conversation after conversation."""
    steps, streams = shape
    now, left, found = np.zeros(streams), np.zeros(streams, dtype=int), np.empty(shape)
    for step in range(steps):
        over = left == 0
        now = np.where(over, badness(chances, (streams,)), now)
        left = np.where(over, 1 + chances.integers(MOST_TURNS, size=streams), left) - 1
        found[step] = chances.random(streams) < now
    return found


def at_the_mean(chances: Generator, streams: int, mean: float) -> Chance:
    """The hardest case: the detector's mean is the true one, with no reference's uncertainty above it."""
    kind = Kind(f"rate {100 * mean:.0f} %", partial(rate, mean), mean)
    return measured(chances, kind, np.full((streams, 1), mean), None)


def with_references(chances: Generator, streams: int, kind: Kind, reference: int) -> Chance:
    """A reference for every stream: several signals share the run length, and have their part of it."""
    references = kind.draw(chances, (reference, streams)).T
    means = np.stack(
        [[kind.bound(values) for values in side] for side in (references, 1 - references)[: kind.sides]], axis=1
    )
    return measured(chances, kind, means, reference)


def measured(chances: Generator, kind: Kind, means: Floats, reference: int | None) -> Chance:
    horizon = int(HORIZON * RUN_LENGTH)
    times = alarm_times(chances, kind.draw, means, horizon)
    misses = None if reference is None else float((means[:, 0] < kind.mean).mean())
    return summary(kind.name, reference, RUN_LENGTH, horizon, times, misses, kind.promised)


def alarm_times(chances: Generator, draw: Draw, means: Floats, horizon: int) -> Floats:
    """The observation (streams,) with the first alarm, from 1; inf if none within `horizon`.

    `means` (streams, sides). Of two sides each has twice the run length, so that both together have the stated one.
    """
    streams, sides = means.shape
    run_length = RUN_LENGTH * sides
    chosen = bets(means, run_length)
    evidence: Floats = np.zeros((streams, sides, BETS))
    times = np.full(streams, np.inf)
    for begun in range(0, horizon, STEPS_AT_ONCE):
        values = draw(chances, (min(STEPS_AT_ONCE, horizon - begun), streams))
        for step, x in enumerate(values, start=begun + 1):
            both = np.stack([x, 1 - x][:sides], axis=1)
            evidence = advanced(evidence, factors(means, chosen, both))
            alarming = (statistic(evidence) >= run_length).any(axis=1)
            times = np.where(alarming, np.minimum(times, step), times)
        if np.isfinite(times).all():
            break
    return times


def summary(
    signal: str,
    reference: int | None,
    stated: float,
    horizon: int,
    times: Floats,
    misses: float | None = None,
    promised: bool = True,
) -> Chance:
    """`mean` is that of the times, cut at the horizon, with the normal interval around it."""
    cut = np.minimum(times, horizon)
    half = 1.96 * float(cut.std()) / len(cut) ** 0.5
    mean = float(cut.mean())
    per_10_000 = 10_000 * float(np.isfinite(times).sum() / cut.sum())
    return Chance(signal, reference, stated, horizon, mean, mean - half, mean + half, per_10_000, misses, promised)


def of_embeddings(chances: Generator, streams: int, reference: int) -> Chance:
    """Few dimensions and a short run length: the tests are the runtime's, and there are many of them."""
    horizon = SHORT_HORIZON * SHORT_RUN_LENGTH
    times = np.empty(streams)
    for stream in range(streams):
        drawn = chances.standard_normal((reference + horizon, FEW_DIMENSIONS), dtype=np.float32)
        times[stream] = first_alarm(drawn[reference:], drawn[:reference], SHORT_RUN_LENGTH, BLOCK, stream)
    return summary(f"vectors, {FEW_DIMENSIONS} dimensions", reference, SHORT_RUN_LENGTH, horizon, times)


def first_alarm(vectors: Floats, reference: Floats, run_length: float, first: int, seed: int) -> float:
    """The conversation of `vectors` (r, d) at which `MmdWindowTest` alarms, from 1, or inf."""
    for end in range(first, len(vectors) + 1, BLOCK):
        recent = vectors[max(0, end - LONG) : end]
        found = window_p_values(recent, reference, run_length, len(vectors) * seed + end)
        if min(found.values()) <= level(run_length):
            return end
    return float("inf")


def power(streams: int) -> Iterator[Power]:
    chances = np.random.default_rng(2)
    ours = expected_chance_alarms(10_000, RUN_LENGTH)
    changes = [
        (Kind("rate, 2 % to 90 %", partial(rate, 0.02), 0.02, bound_of_rate), partial(rate, 0.9)),
        (Kind("tone score, 0.2 to 0.8", partial(scores, 2, 8), 0.2), partial(scores, 8, 2)),
    ]
    for kind, changed in changes:
        for share in SHARES:
            yield noticed(kind.name, share, changed_times(chances, streams, kind, changed, share), ours)
    for share in SHARES:
        yield noticed(f"vectors, {SHIFT:g} sd apart", share, changed_windows(chances, share), ours)
    yield Power("any", 1.0, "always alarms", 1.0, 1, 10_000)
    yield Power("any", 1.0, "never alarms", 0.0, None, 0)


def scores(a: float, b: float, chances: Generator, shape: tuple[int, int]) -> Floats:
    return chances.beta(a, b, shape)


def noticed(signal: str, share: float, delays: Floats, per_10_000: float) -> Power:
    inside = delays[delays <= WITHIN]
    delay = float(np.median(inside)) if len(inside) else None
    detector = "Windows" if signal.startswith("vectors") else "Sequential"
    return Power(signal, share, detector, len(inside) / len(delays), delay, per_10_000)


def changed_times(chances: Generator, streams: int, kind: Kind, changed: Draw, share: float) -> Floats:
    """Observations from the change to the alarm, of the streams that had not alarmed before it."""
    references = kind.draw(chances, (REFERENCES[0], streams)).T
    means = np.array([[kind.bound(values)] for values in references])
    before = kind.draw(chances, (BEFORE, streams))
    shape = (WITHIN, streams)
    after = np.where(chances.random(shape) < share, changed(chances, shape), kind.draw(chances, shape))
    blocks = iter(np.split(np.concatenate([before, after]), range(STEPS_AT_ONCE, BEFORE + WITHIN, STEPS_AT_ONCE)))
    times = alarm_times(chances, lambda _chances, _shape: next(blocks), means, BEFORE + WITHIN)
    return times[times > BEFORE] - BEFORE


def changed_windows(chances: Generator, share: float) -> Floats:
    """Conversations from the change to the alarm, where 200 as the reference came before it."""
    delays = np.empty(EMBEDDING_STREAMS)
    for stream in range(EMBEDDING_STREAMS):
        drawn = chances.standard_normal((REFERENCES[0] + BEFORE + WITHIN, DIMENSION), dtype=np.float32)
        drawn[-WITHIN:, 0] += SHIFT * (chances.random(WITHIN) < share)
        reference, vectors = drawn[: REFERENCES[0]], drawn[REFERENCES[0] :]
        delays[stream] = first_alarm(vectors, reference, RUN_LENGTH, BEFORE + BLOCK, stream) - BEFORE
    return delays


def smallest() -> list[dict[str, Any]]:
    """The rates that `SequentialTest` notices, by what the reference's was; printed as they are found."""
    horizons = (100, 500, 2000)
    print_row(["reference's rate", "reference", "bound", *(f"within {one:,}" for one in horizons)])
    print_row(["---"] * 6)
    found = []
    for usual in (0.0, 0.02, 0.05, 0.2):
        for reference in REFERENCES:
            mean = upper_rate_bound(round(usual * reference), reference)
            changes = {one: smallest_change(mean, RUN_LENGTH, one) for one in horizons}
            found.append({"rate": usual, "reference": reference, "bound": mean, "within": changes})
            cells = ["-" if change is None else f"{100 * change:.0f} %" for change in changes.values()]
            print_row([f"{100 * usual:.0f} %", str(reference), f"{100 * mean:.1f} %", *cells])
    print()
    return found


if __name__ == "__main__":
    sys.exit(main())
