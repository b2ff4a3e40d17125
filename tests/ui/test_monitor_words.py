"""What the monitor tab makes of the server's numbers and sentences."""

from datetime import UTC, datetime
from typing import Any

import pytest

from polytone.contract.version_id import voice_of
from polytone.ui.api import ApiError, refusal
from polytone.ui.monitor.activity import (
    COLOURS,
    DRAWN,
    PERIODS,
    Activity,
    Row,
    counted_rows,
    errors_words,
    measured_rows,
    seconds_words,
    thumbs_words,
    totals_table,
    window,
)
from polytone.ui.monitor.drift import acknowledge, alarm_panel, alarms_of, chance_words, drift_panel
from polytone.ui.monitor.health import health_words

A, B = "acme@aaaaaaaaaaaa", "zest@bbbbbbbbbbbb"
HOUR = PERIODS[0]
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def point(at: str, answers: int = 0, **more: Any) -> dict[str, Any]:
    return {"at": f"2026-01-01T{at}:00+00:00", "answers": answers, **more}


def activity(**series: list[dict[str, Any]]) -> Activity:
    """`a` and `b` are the series of two versions; what they sum to are the totals."""
    ids = {"a": A, "b": B}
    named = {key: {"adapter": ids[key][:4], "version": ids[key]} for key in series}
    totals = [{**named[key], "answers": sum(one["answers"] for one in points)} for key, points in series.items()]
    made = [{**named[key], "points": points} for key, points in series.items()]
    return Activity(HOUR, *window(HOUR, NOON), totals, made)


def clock(rows: list[Row]) -> list[tuple[str, float | None]]:
    return [(f"{datetime.fromtimestamp(at / 1000, UTC):%H:%M}", value) for at, value, _ in rows]


@pytest.mark.parametrize("period", PERIODS, ids=lambda period: period.label)
def test_a_period_is_whole_steps_that_hold_the_present(period: Any) -> None:
    since, until = window(period, NOON)
    assert (until - since).total_seconds() == period.seconds
    assert since < NOON < until
    assert until.timestamp() % period.step == since.timestamp() % period.step == 0
    assert period.seconds % period.step == 0


def test_bars_have_the_sum_of_each_step_and_none_where_nothing_was() -> None:
    points = [point("11:10", 3, prompt_tokens=5, completion_tokens=7), point("11:11"), point("11:12", 1)]
    found = activity(a=points)
    assert clock(counted_rows(found, "answers")) == [("11:10", 3), ("11:12", 1)]
    assert clock(counted_rows(found, "prompt_tokens", "completion_tokens")) == [("11:10", 12)]


def test_lines_are_level_over_their_step_and_broken_where_nothing_was() -> None:
    points = [point("11:10", 1, first_token_p50=0.2), point("11:11", 1, first_token_p50=0.3)]
    more = [*points, point("11:13", 1, first_token_p50=0.4)]
    assert clock(measured_rows(activity(a=more), "first_token_p50")) == [
        ("11:10", 0.2),
        ("11:11", 0.2),
        ("11:11", 0.3),
        ("11:12", 0.3),
        ("11:12", None),
        ("11:13", 0.4),
        ("11:14", 0.4),
    ]
    assert measured_rows(activity(a=[point("11:10", 1, first_token_p50=None)]), "first_token_p50") == []


def test_thumbs_are_drawn_as_a_share_of_thumbs() -> None:
    points = [point("11:10", 9, thumbs_up=3, thumbs_down=1), point("11:11", 9, thumbs_up=0, thumbs_down=0)]
    assert clock(measured_rows(activity(a=points), "thumbs")) == [("11:10", 75), ("11:11", 75)]


def test_one_voice_or_all_and_no_more_series_than_colours() -> None:
    both = activity(a=[point("11:10", 3)], b=[point("11:10", 5)])
    assert [one["version"] for one in both.of("zest").drawn] == [B]
    assert [one["version"] for one in both.of(None).drawn] == [A, B]
    many = [{"adapter": "acme", "version": f"acme@{i:012}", "answers": 1} for i in range(DRAWN + 3)]
    series = [{**one, "points": [point("11:10", 1)]} for one in many]
    crowded = Activity(HOUR, *window(HOUR, NOON), many, series)
    assert list(crowded.colours.values()) == list(COLOURS)
    assert totals_table(crowded).count("(not drawn)") == 3


def test_numbers_in_words() -> None:
    assert (seconds_words(None), seconds_words(0.1234), seconds_words(2.345)) == ("-", "123 ms", "2.35 s")
    assert errors_words({"answers": 39, "errors": 1}) == "1 (2.5 %)"
    assert errors_words({"answers": 40, "errors": 0}) == "0"
    assert thumbs_words({"thumbs_up": 3, "thumbs_down": 1}) == "3 up, 1 down (75 % up)"
    assert thumbs_words({}) == "none"
    assert "No requests in the last hour" in totals_table(activity())


ALARM = {
    "at": "2026-01-01T10:00:30+00:00",
    "since": "2026-01-01T08:30:00+00:00",
    "conversations_since": 31,
    "words": "replies are empty more often: 40.0 %, the reference has 1.0 %",
    "examples": ["x", "y"],
}


def version(name: str = A, alarm: dict[str, Any] | None = None, expected: float = 0.03) -> dict[str, Any]:
    state = "drift" if alarm else "ok"
    signals = [
        {"signal": "empty", "state": state, "words": "Words <b>.", "run_length": 20_000, "alarm": alarm},
        {"signal": "tone", "state": "warming_up", "words": "3 of 200", "run_length": 20_000, "alarm": None},
    ]
    named = {"version": name, "adapter": voice_of(name), "state": state}
    return {**named, "expected_chance_alarms": expected, "signals": signals}


def test_an_alarm_says_what_since_when_and_what_to_look_at() -> None:
    found = alarms_of([version(), version(B, ALARM)])
    assert [(one["version"], one["signal"]) for one in found] == [(B, "empty")]
    panel = alarm_panel(found[0])
    assert "Replies are empty more often: 40.0 %, the reference has 1.0 %" in panel
    assert "began about 2026-01-01 08:30 UTC, 31 conversations before the alarm" in panel
    assert "2 answers that show it are in the review queue" in panel


def test_acknowledging_says_that_the_detector_starts_anew() -> None:
    plan = acknowledge({**ALARM, "version": B, "signal": "reply_topics"})
    assert "restarts" in plan.sentence
    assert plan.path == f"/admin/drift/{B}/reply_topics/acknowledge"


def test_chance_alarms_are_told_beside_those_that_stand() -> None:
    words = chance_words([version(), version(B, ALARM, 0.4)])
    assert "one alarm in 20,000 conversations" in words
    assert "about 0.43 alarms in the 4 detectors shown here; 1 active alarm." in words
    assert chance_words([]) == ""


def test_the_drift_of_versions_is_shown_signal_by_signal() -> None:
    panel = drift_panel([version(), version(B, ALARM)])
    assert panel.count("<details open>") == 1
    assert f"{A}: no change" in panel
    assert "Words &lt;b&gt;." in panel
    assert "No detectors yet" in drift_panel([])


def test_a_server_that_is_not_ready_says_why() -> None:
    refused = refusal(503, {"status": "not_ready", "reason": "the engine died"})
    assert "The server is not ready: the engine died." in health_words(refused)
    assert "cannot be reached" in health_words(ApiError("The server cannot be reached (ConnectError)."))
