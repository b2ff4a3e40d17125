"""Chance alarms and power of the drift detectors, on simulated conversations.

`chance`: streams without a change, each with a new reference. The mean run length until the first alarm, cut at a
horizon, is compared with the stated one. With every turn as an observation nothing is promised; that row shows why the
runtime takes one turn of a conversation. `power`: a share of the conversations changes after 200. Writes drift.json.
Exit code 1 if a mean run length is below the stated one.
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
MAX_TURNS = 11

EMBEDDING_STREAMS = 150
SHORT_RUN_LENGTH = 500
SHORT_HORIZON = 2
DIMENSION, FEW_DIMENSIONS = 64, 8
SHIFT = 6.0

SHARES = (0.1, 0.2, 0.4)
BEFORE, WITHIN = 200, 500


@dataclass(frozen=True)
class Kind:
    """A simulated signal with a known `mean`. `draw` gives (steps, streams) values; `sides` is 1, or 2 for a fall, too.

    `bound` computes the detector's mean from a reference (n,).
    """

    name: str
    draw: Draw
    mean: float
    bound: Bound = upper_bound
    sides: int = 1
    promised: bool = True


@dataclass(frozen=True)
class Chance:
    """Run lengths of one signal without a change. `misses` is the share of references with a bound below the mean."""

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
    """Detection of one change: the share detected within 500 conversations, and the median delay of those."""

    signal: str
    share: float
    detector: str
    detected: float
    delay: float | None
    per_10_000: float

    def cells(self) -> Iterator[str]:
        yield self.signal
        yield f"{100 * self.share:.0f} %"
        yield self.detector
        yield f"{100 * self.detected:.0f} %"
        yield "-" if self.delay is None else f"{self.delay:.0f}"
        yield f"{self.per_10_000:g}"


Row = TypeVar("Row", Chance, Power)

POWER_HEADER = (
    "signal", "changed", "detector", f"detected within {WITHIN}", "median delay", "chance alarms per 10,000",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="chance, power; both by default")
    parser.add_argument("--out", type=Path, default=Path(".polytone/bench"), help="folder for drift.json")
    parser.add_argument("--streams", type=int, default=STREAMS, help="simulated streams of every signal")
    options = parser.parse_args()
    if unknown := set(options.rows) - {"chance", "power"}:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    selected, began = options.rows or ["chance", "power"], time.monotonic()
    results: dict[str, Any] = {"streams": options.streams}
    held = True
    if "chance" in selected:
        chances = list(printed(CHANCE_HEADER, chance(options.streams)))
        held = all(one.holds for one in chances)
        results["chance"] = [{**asdict(one), "holds": one.holds} for one in chances]
    if "power" in selected:
        results["power"] = [asdict(one) for one in printed(POWER_HEADER, power(options.streams))]
        results["smallest"] = smallest()
    results["seconds"] = time.monotonic() - began
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "drift.json").write_text(json.dumps(results, indent=1))
    print(f"{options.out / 'drift.json'}, {results['seconds']:.0f} s")
    return 0 if held else 1


def printed(header: Iterable[str], rows: Iterable[Row]) -> Iterator[Row]:
    """Print rows as lines of a Markdown table, each as soon as it is computed, and pass them on."""
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
        yield with_embeddings(chances, streams, reference)


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
    """Lengths on a logarithmic scale from 0 to 1."""
    return np.asarray(np.clip(0.6 + 0.1 * chances.standard_normal(shape), 0, 1))


# Most turns are bad in a few conversations, and hardly any in the others.
TROUBLED, BADNESS = 0.08, (0.01, 0.6)
MEAN_BADNESS = (1 - TROUBLED) * BADNESS[0] + TROUBLED * BADNESS[1]


def badness(chances: Generator, shape: tuple[int, ...]) -> Floats:
    return np.asarray(np.where(chances.random(shape) < TROUBLED, BADNESS[1], BADNESS[0]))


def one_turn(chances: Generator, shape: tuple[int, int]) -> Floats:
    """One random turn of each conversation."""
    turns = chances.random((MAX_TURNS, *shape)) < badness(chances, shape)
    length = 1 + chances.integers(MAX_TURNS, size=shape)
    drawn = (chances.random(shape) * length).astype(int)
    return np.asarray(np.take_along_axis(turns, drawn[None], axis=0)[0], dtype=np.float64)


def every_turn(chances: Generator, shape: tuple[int, int]) -> Floats:
    """All turns, one conversation after another."""
    steps, streams = shape
    rates, left, turns = np.zeros(streams), np.zeros(streams, dtype=int), np.empty(shape)
    for step in range(steps):
        over = left == 0
        rates = np.where(over, badness(chances, (streams,)), rates)
        left = np.where(over, 1 + chances.integers(MAX_TURNS, size=streams), left) - 1
        turns[step] = chances.random(streams) < rates
    return turns


def at_the_mean(chances: Generator, streams: int, mean: float) -> Chance:
    """The strictest case: the detector knows the true mean, without the margin of a bound from a reference."""
    kind = Kind(f"rate {100 * mean:.0f} %", partial(rate, mean), mean)
    return run_lengths(chances, kind, np.full((streams, 1), mean), None)


def with_references(chances: Generator, streams: int, kind: Kind, reference: int) -> Chance:
    """A reference for every stream; two sides share the run length."""
    references = kind.draw(chances, (reference, streams)).T
    means = np.stack(
        [[kind.bound(values) for values in side] for side in (references, 1 - references)[: kind.sides]], axis=1
    )
    return run_lengths(chances, kind, means, reference)


def run_lengths(chances: Generator, kind: Kind, means: Floats, reference: int | None) -> Chance:
    horizon = int(HORIZON * RUN_LENGTH)
    times = alarm_times(chances, kind.draw, means, horizon)
    misses = None if reference is None else float((means[:, 0] < kind.mean).mean())
    return summary(kind.name, reference, RUN_LENGTH, horizon, times, misses, kind.promised)


def alarm_times(chances: Generator, draw: Draw, means: Floats, horizon: int) -> Floats:
    """The numbers (streams,) of the observations with the first alarm, from 1; inf if none within `horizon`.

    `means` (streams, sides). Each of two sides has twice the run length, so that together they have the stated one.
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
    """The mean of the times, cut at the horizon, with its normal interval."""
    cut = np.minimum(times, horizon)
    half = 1.96 * float(cut.std()) / len(cut) ** 0.5
    mean = float(cut.mean())
    per_10_000 = 10_000 * float(np.isfinite(times).sum() / cut.sum())
    return Chance(signal, reference, stated, horizon, mean, mean - half, mean + half, per_10_000, misses, promised)


def with_embeddings(chances: Generator, streams: int, reference: int) -> Chance:
    """The runtime's window tests, with few dimensions and a short run length because there are many of them."""
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
        p_values = window_p_values(recent, reference, run_length, len(vectors) * seed + end)
        if min(p_values.values()) <= level(run_length):
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
            yield detection(kind.name, share, changed_times(chances, streams, kind, changed, share), ours)
    for share in SHARES:
        yield detection(f"vectors, {SHIFT:g} sd apart", share, changed_windows(chances, share), ours)
    yield Power("any", 1.0, "always alarms", 1.0, 1, 10_000)
    yield Power("any", 1.0, "never alarms", 0.0, None, 0)


def scores(a: float, b: float, chances: Generator, shape: tuple[int, int]) -> Floats:
    return chances.beta(a, b, shape)


def detection(signal: str, share: float, delays: Floats, per_10_000: float) -> Power:
    inside = delays[delays <= WITHIN]
    delay = float(np.median(inside)) if len(inside) else None
    detector = "Windows" if signal.startswith("vectors") else "Sequential"
    return Power(signal, share, detector, len(inside) / len(delays), delay, per_10_000)


def changed_times(chances: Generator, streams: int, kind: Kind, changed: Draw, share: float) -> Floats:
    """Observations from the change to the alarm, in streams without an alarm before the change."""
    references = kind.draw(chances, (REFERENCES[0], streams)).T
    means = np.array([[kind.bound(values)] for values in references])
    before = kind.draw(chances, (BEFORE, streams))
    shape = (WITHIN, streams)
    after = np.where(chances.random(shape) < share, changed(chances, shape), kind.draw(chances, shape))
    blocks = iter(np.split(np.concatenate([before, after]), range(STEPS_AT_ONCE, BEFORE + WITHIN, STEPS_AT_ONCE)))
    times = alarm_times(chances, lambda _chances, _shape: next(blocks), means, BEFORE + WITHIN)
    return times[times > BEFORE] - BEFORE


def changed_windows(chances: Generator, share: float) -> Floats:
    """Conversations from the change to the alarm, after 200 like the reference."""
    delays = np.empty(EMBEDDING_STREAMS)
    for stream in range(EMBEDDING_STREAMS):
        drawn = chances.standard_normal((REFERENCES[0] + BEFORE + WITHIN, DIMENSION), dtype=np.float32)
        drawn[-WITHIN:, 0] += SHIFT * (chances.random(WITHIN) < share)
        reference, vectors = drawn[: REFERENCES[0]], drawn[REFERENCES[0] :]
        delays[stream] = first_alarm(vectors, reference, RUN_LENGTH, BEFORE + BLOCK, stream) - BEFORE
    return delays


def smallest() -> list[dict[str, Any]]:
    """The smallest rates that `SequentialTest` detects, by the rate of the reference; prints each."""
    horizons = (100, 500, 2000)
    print_row(["reference's rate", "reference", "bound", *(f"within {one:,}" for one in horizons)])
    print_row(["---"] * 6)
    rows = []
    for usual in (0.0, 0.02, 0.05, 0.2):
        for reference in REFERENCES:
            mean = upper_rate_bound(round(usual * reference), reference)
            changes = {one: smallest_change(mean, RUN_LENGTH, one) for one in horizons}
            rows.append({"rate": usual, "reference": reference, "bound": mean, "within": changes})
            cells = ["-" if change is None else f"{100 * change:.0f} %" for change in changes.values()]
            print_row([f"{100 * usual:.0f} %", str(reference), f"{100 * mean:.1f} %", *cells])
    print()
    return rows


if __name__ == "__main__":
    sys.exit(main())
