"""Detectors: chance alarms are as rare as stated, changes are noticed, and states survive a restart."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import ArrayLike

from polytone.serve.drift.mmd import (
    BLOCK,
    LONG,
    SCALES,
    MmdWindowTest,
    bandwidth,
    level,
    mmd_p_value,
    nearest_to_change,
    permutations,
    window_p_values,
)
from polytone.serve.drift.sequential import (
    BETS,
    DELTA,
    RUN_LENGTH,
    Floats,
    SequentialTest,
    advanced,
    bets,
    expected_chance_alarms,
    factors,
    smallest_change,
    statistic,
    upper_bound,
    upper_rate_bound,
)


def at_most(probability: float, times: int) -> float:
    """The share that as many tries do not exceed but once in a thousand, if the probability is no higher."""
    return probability + 3.1 * math.sqrt(probability * (1 - probability) / times)


def run_lengths(mean: float, run_length: float, values: ArrayLike) -> Floats:
    """Observations until the first alarm in each column of `values` (steps, streams); inf where there is none."""
    observations = np.asarray(values, dtype=float)
    evidence: Floats = np.zeros((observations.shape[1], BETS))
    chosen, times = bets(mean, run_length), np.full(observations.shape[1], np.inf)
    for step, x in enumerate(observations, start=1):
        evidence = advanced(evidence, factors(mean, chosen, x))
        times = np.where(statistic(evidence) >= run_length, np.minimum(times, step), times)
    return times


def after(state: SequentialTest, values: ArrayLike) -> SequentialTest:
    for x in np.asarray(values, dtype=float):
        state = state.step(float(x))
    return state


@pytest.mark.parametrize("n", [10, 40, 200])
@pytest.mark.parametrize(
    ("mean", "draw"),
    [
        (0.05, lambda chances, n: chances.random(n) < 0.05),
        (0.3, lambda chances, n: chances.random(n) < 0.3),
        (0.2, lambda chances, n: chances.random(n) ** 4),
        (0.8, lambda chances, n: chances.beta(8, 2, n)),
    ],
)
def test_the_mean_is_rarely_above_its_bound(
    mean: float, draw: Callable[[np.random.Generator, int], Floats], n: int
) -> None:
    chances, times = np.random.default_rng(n), 300
    misses = sum(upper_bound(draw(chances, n)) < mean for _ in range(times))
    assert misses / times <= at_most(DELTA, times)


@pytest.mark.parametrize("n", [10, 40, 200])
def test_the_bound_of_zeros_is_about_the_exact_one(n: int) -> None:
    exact = 1 - DELTA ** (1 / n)
    assert exact <= upper_bound(np.zeros(n)) <= 1.12 * exact
    assert upper_rate_bound(0, n) == pytest.approx(exact)
    assert upper_bound(np.ones(n)) == upper_rate_bound(n, n) == 1


def test_the_bound_is_tighter_for_values_that_vary_little() -> None:
    chances = np.random.default_rng(0)
    rate = chances.permutation(np.arange(200) < 60)
    narrow = chances.uniform(0.2, 0.4, 200)
    assert 0.3 < upper_bound(narrow) < 0.33 < upper_rate_bound(60, 200) <= upper_bound(rate) < 0.4


def test_the_order_of_the_values_hardly_matters() -> None:
    chances = np.random.default_rng(1)
    values = np.sort(chances.beta(2, 8, 200))
    bounds = [upper_bound(values), *(upper_bound(chances.permutation(values)) for _ in range(20))]
    assert max(bounds) - min(bounds) < 0.02


@pytest.mark.parametrize(("hits", "of"), [(1, 10), (4, 200), (150, 200)])
def test_at_the_bound_of_a_rate_so_few_hits_have_a_probability_of_delta(hits: int, of: int) -> None:
    bound = upper_rate_bound(hits, of)
    few = sum(math.comb(of, k) * bound**k * (1 - bound) ** (of - k) for k in range(hits + 1))
    assert few == pytest.approx(DELTA)


@pytest.mark.parametrize("values", [[], [0.5, 1.1], [-0.1], [math.nan], [[0.5]]])
def test_a_bound_of_anything_but_values_between_0_and_1_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        upper_bound(values)


@pytest.mark.parametrize("mean", [0.02, 0.2, 0.6])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_without_a_change_alarms_are_as_rare_as_stated_and_not_much_rarer(mean: float, scale: float) -> None:
    """The hardest case, the true mean is the detector's: of a rate, and of values half as spread around it."""
    run_length, streams, chances = 200, 400, np.random.default_rng(3)
    hits = chances.random((4 * run_length, streams)) < mean
    times = run_lengths(mean, run_length, mean + math.sqrt(scale) * (hits - mean))
    cut = np.minimum(times, 4 * run_length).mean()
    assert run_length <= cut <= 2.5 * run_length
    for observations in (run_length // 4, run_length // 2, run_length):
        expected = expected_chance_alarms(observations, run_length)
        assert (times <= observations).mean() <= at_most(min(expected, 1), streams)


def test_a_detector_that_starts_anew_after_each_alarm_keeps_the_rate_of_chance_alarms() -> None:
    chances, run_length, observations, alarms = np.random.default_rng(4), 50.0, 20_000, 0
    state = SequentialTest.fresh(0.1, run_length)
    for x in chances.random(observations) < 0.1:
        state = state.step(float(x))
        if state.alarmed:
            alarms, state = alarms + 1, SequentialTest.fresh(0.1, run_length)
    expected = expected_chance_alarms(observations, run_length)
    assert 0.3 * expected <= alarms <= expected + 3 * math.sqrt(expected)


def test_a_state_goes_the_way_of_the_vectorised_detector() -> None:
    values = (np.random.default_rng(5).random((300, 1)) < 0.2).astype(float)
    evidence: Floats = np.zeros((1, BETS))
    for x in values:
        evidence = advanced(evidence, factors(0.1, bets(0.1, RUN_LENGTH), x))
    state = after(SequentialTest.fresh(0.1), values[:, 0])
    assert state.evidence == tuple(evidence[0])
    assert state.statistic == statistic(evidence)[0]


def test_a_great_change_is_noticed_within_a_few_observations() -> None:
    state = after(SequentialTest.fresh(0.05), np.random.default_rng(6).random(1000) < 0.02)
    assert not state.alarmed
    state = after(state, np.ones(7))
    assert state.alarmed
    assert state.since == 1001


def test_a_rise_within_the_bound_is_none() -> None:
    state = after(SequentialTest.fresh(0.05), np.full(20_000, 0.049))
    assert not state.alarmed


def test_the_alarm_says_since_when_and_stays_when_the_change_is_over() -> None:
    errors = []
    for seed in range(20):
        chances = np.random.default_rng(seed)
        values = np.concatenate([chances.random(400) < 0.03, chances.random(200) < 0.3, chances.random(100) < 0.03])
        state = after(SequentialTest.fresh(0.05), values)
        assert state.since is not None
        errors.append(abs(state.since - 401))
    assert np.median(errors) <= 10
    assert max(errors) <= 60


def test_a_detector_goes_on_where_it_was_after_a_restart() -> None:
    values = np.random.default_rng(7).random(400) ** 3
    once = after(SequentialTest.fresh(0.2), values)
    half = after(SequentialTest.fresh(0.2), values[:200])
    restarted = SequentialTest.from_json(json.loads(json.dumps(half.to_json(), allow_nan=False)))
    assert restarted == half
    assert after(restarted, values[200:]) == once


def test_evidence_stays_finite_however_long_a_change_lasts() -> None:
    state = after(SequentialTest.fresh(0.01), np.ones(1000))
    assert math.isfinite(state.statistic)
    assert SequentialTest.from_json(json.loads(json.dumps(state.to_json(), allow_nan=False))) == state


def test_what_a_detector_cannot_watch_is_refused() -> None:
    for mean, run_length in ((0, 100), (1.1, 100), (0.5, 1), (0.5, 1e15), (math.nan, 100)):
        with pytest.raises(ValueError, match="run length"):
            SequentialTest.fresh(mean, run_length)
    for x in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            SequentialTest.fresh(0.5).step(x)


def test_the_longer_one_waits_the_smaller_a_change_is_noticed() -> None:
    for mean in (0.02, 0.1, 0.5):
        found = [smallest_change(mean, RUN_LENGTH, within) for within in (50, 100, 300, 1000, 3000)]
        changes = [change for change in found if change is not None]
        assert len(changes) == len(found)
        assert changes == sorted(changes, reverse=True)
        assert mean < changes[-1] < changes[0] < 1
    assert smallest_change(0.5, RUN_LENGTH, 10) is None


@pytest.mark.parametrize(("mean", "within"), [(0.02, 100), (0.1, 300), (0.5, 100)])
def test_the_smallest_change_is_noticed_as_often_as_said_and_half_of_it_is_not(mean: float, within: int) -> None:
    change = smallest_change(mean, RUN_LENGTH, within)
    assert change is not None
    chances = np.random.default_rng(8).random((within, 500))
    assert np.isfinite(run_lengths(mean, RUN_LENGTH, chances < change)).mean() >= 0.8
    assert np.isfinite(run_lengths(mean, RUN_LENGTH, chances < (mean + change) / 2)).mean() < 0.5


@pytest.mark.parametrize("enough", [10, 1000])
def test_p_values_are_small_as_rarely_as_they_say(enough: int) -> None:
    """Both when all relabelings are drawn and when it ends early; and not rarer, or nothing would be noticed."""
    chances, times = np.random.default_rng(9), 500
    drawn = chances.standard_normal((times, 60, 4))
    found = np.array([mmd_p_value(one[:20], one[20:], 199, seed, enough) for seed, one in enumerate(drawn)])
    for probability in (0.02, 0.1, 0.3):
        assert (found <= probability).mean() <= at_most(probability, times)
    assert (found <= 0.3).mean() >= 0.2


def test_ending_early_decides_as_all_relabelings_would() -> None:
    chances, decided = np.random.default_rng(10), set()
    for seed in range(40):
        window, reference = chances.standard_normal((20, 4)) + seed / 40, chances.standard_normal((40, 4))
        early, full = (mmd_p_value(window, reference, 999, seed, enough) for enough in (10, 10_000))
        assert (early <= 0.005) == (full <= 0.005)
        decided.add(full <= 0.005)
    assert decided == {True, False}


def test_vectors_that_are_all_alike_are_no_change() -> None:
    alike = np.full((120, 64), 0.1, dtype=np.float16)
    assert mmd_p_value(alike[:50], alike[50:], 500, 0) == 1


def test_the_kernel_is_not_as_narrow_as_the_rounding_where_most_of_the_reference_is_alike() -> None:
    for seed in range(5):
        alike = np.tile(np.random.default_rng(seed).standard_normal(64) / 8, (200, 1)).astype(np.float16)
        assert bandwidth(alike) == 1


def test_each_test_keeps_its_level_and_the_levels_add_up_to_the_run_length() -> None:
    run_length, times, chances = 250, 200, np.random.default_rng(11)
    assert SCALES * level(run_length) * 2 * run_length == pytest.approx(BLOCK)
    assert 1 / (permutations(run_length) + 1) <= level(run_length)
    alarms = dict.fromkeys((BLOCK, LONG), 0)
    for seed in range(times):
        drawn = chances.standard_normal((LONG + 60, 3))
        for size, p_value in window_p_values(drawn[:LONG], drawn[LONG:], run_length, seed).items():
            alarms[size] += p_value <= level(run_length)
    assert max(alarms.values()) / times <= at_most(level(run_length), times)


def test_changed_vectors_are_noticed_at_the_end_of_their_block_and_the_alarm_stays() -> None:
    chances = np.random.default_rng(12)
    reference = chances.standard_normal((100, 8))
    state = MmdWindowTest(8)
    for number in range(300):
        state = state.step(chances.standard_normal(8) + 3 * (200 <= number < 250), reference)
        assert state.alarmed == (number >= 249)
    assert state.since == 201


def test_windows_go_on_where_they_were_after_a_restart() -> None:
    chances = np.random.default_rng(13)
    reference, vectors = chances.standard_normal((40, 8)), chances.standard_normal((130, 8))
    once = half = MmdWindowTest(8, 1000)
    for number, vector in enumerate(vectors):
        once = once.step(vector, reference)
        if number == 69:
            half = MmdWindowTest.from_json(json.loads(json.dumps(once.to_json(), allow_nan=False)))
    for vector in vectors[70:]:
        half = half.step(vector, reference)
    assert half == once
    assert once.p_value < 1
    assert (once.vectors == vectors.astype(np.float16)).all()


@pytest.mark.parametrize("vector", [np.zeros(7), np.zeros((1, 8)), np.full(8, math.nan), np.full(8, 1e6)])
def test_a_vector_of_another_shape_or_size_is_refused(vector: Floats) -> None:
    with pytest.raises(ValueError, match="8 finite numbers"):
        MmdWindowTest(8).step(vector, np.zeros((10, 8)))


def test_the_witness_names_those_that_changed() -> None:
    chances = np.random.default_rng(14)
    window, reference = chances.standard_normal((50, 16)), chances.standard_normal((100, 16))
    window[10:20] += 2
    assert set(nearest_to_change(window, reference, 5)) <= set(range(10, 20))
    assert len(nearest_to_change(window, reference, 5)) == 5


def test_watching_a_version_takes_as_little_memory_as_is_said() -> None:
    reference = np.zeros((200, 64), dtype=np.float16)
    windows, detector = MmdWindowTest(64), after(SequentialTest.fresh(0.05), np.zeros(10))
    for _ in range(LONG + 20):
        windows = windows.step(reference[0], reference)
    assert len(windows.recent) == LONG * 64 * 2
    assert len(detector.evidence) == len(detector.climbs) == len(detector.starts) == BETS
    assert len(json.dumps(windows.to_json())) < 36 * 1024
