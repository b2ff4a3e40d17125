"""What the voices tab says it will do, what it asks of the server for it, and the words for what there is."""

from collections.abc import Callable
from typing import Any

import pytest

from polytone.ui.api import ApiError
from polytone.ui.markup import Html, failure, joined, paragraph, table
from polytone.ui.plan import Plan, PlanError, refusal
from polytone.ui.voices.plans import canary, promote, retire, roll_back, silence, upload
from polytone.ui.voices.version_words import version_panel
from polytone.ui.voices.words import all_versions, audit_words, lag_words, rollout_words, state_words, voice_panel

A, B, C = (f"acme@{letter * 12}" for letter in "abc")


def rollout(generation: int, previous: int | None = None, **weights: int) -> dict[str, Any]:
    versions = [{"version": {"a": A, "b": B, "c": C}[key], "weight": weight} for key, weight in weights.items()]
    return {"generation": generation, "versions": versions, "previous": previous}


def voice(*history: dict[str, Any], **states: str) -> dict[str, Any]:
    """acme with its newest rollout first."""
    ids = {"a": A, "b": B, "c": C}
    known = states or {"a": "ready", "b": "ready", "c": "failed"}
    newest = history[0] if history and history[0]["versions"] else None
    versions = [
        {"version": ids[key], "state": state, "reason": "no file" if state == "failed" else None, "resident": True}
        for key, state in known.items()
    ]
    return {"name": "acme", "rollout": newest, "answers": newest, "versions": versions, "history": list(history)}


def test_a_promotion_names_both_sides_and_sends_what_was_seen() -> None:
    plan = promote(voice(rollout(7, 6, a=90, c=10)), B)
    assert f"{B} will answer 100 % of acme. Now: {A} 90 %, {C} 10 %." in plan.sentence
    assert (plan.method, plan.path) == ("PUT", "/admin/adapters/acme/rollout")
    assert plan.body == {"versions": [{"version": B, "weight": 100}], "generation": 7}
    assert plan.anyway is not None
    assert plan.anyway.body == {**plan.body, "force": True}
    assert "audit log will say that you forced it" in plan.anyway.sentence
    assert plan.anyway.anyway is None


def test_a_voice_that_never_had_a_rollout_is_changed_from_generation_0() -> None:
    plan = promote(voice(), A)
    assert plan.body is not None
    assert plan.body["generation"] == 0
    assert "Now: no version answers." in plan.sentence


def test_a_promotion_of_a_version_that_failed_says_so() -> None:
    assert "Warning: it failed on this server (no file)" in promote(voice(rollout(1, a=100)), C).sentence
    assert "It is loading on this server" in promote(voice(rollout(1, a=100), a="ready", b="loading"), B).sentence


def test_a_canary_takes_from_the_one_that_answers_most() -> None:
    plan = canary(voice(rollout(2, 1, a=30, c=70)), B, 5)
    assert plan.body is not None
    assert plan.body["versions"] == [{"version": C, "weight": 95}, {"version": B, "weight": 5}]
    assert f"{B} will answer 5 % of acme's conversations, {C} the other 95 %" in plan.sentence
    assert f"{A} will answer nothing" in plan.sentence
    again = canary(voice(rollout(3, 2, c=95, b=5)), B, 50).body
    assert again is not None
    assert again["versions"] == [{"version": C, "weight": 50}, {"version": B, "weight": 50}]


@pytest.mark.parametrize("percent", [0, 100, -1, 10.5, None])
def test_a_canary_is_a_whole_share(percent: float | None) -> None:
    with pytest.raises(PlanError, match="whole number from 1 to 99"):
        canary(voice(rollout(1, a=100)), B, percent)


def test_going_back_follows_the_server_and_not_the_order_of_rollouts() -> None:
    """After a rollback the one before it is not where the next one leads."""
    history = [rollout(4, 1, b=100), rollout(3, 2, a=100), rollout(2, 1, b=100), rollout(1, None, c=100)]
    plan = roll_back(voice(*history))
    assert f"Goes back to generation 1 of acme: {C} 100 %. Now: {B} 100 %." in plan.sentence
    assert plan.body == {"generation": 4}


def test_what_cannot_be_done_is_said_in_a_sentence() -> None:
    alone = voice(rollout(1, a=100))
    nobody = voice(rollout(2, 1), rollout(1, a=100))
    cases: list[tuple[Callable[[], Plan], str]] = [
        (lambda: promote(None, A), "Choose a voice first"),
        (lambda: promote(alone, None), "Choose a version first"),
        (lambda: promote(alone, "acme@ffffffffffff"), "is retired or unknown"),
        (lambda: promote(alone, A), "already answers 100 % of acme"),
        (lambda: canary(alone, A, 10), "no other version to share with"),
        (lambda: roll_back(alone), "no earlier rollout"),
        (lambda: roll_back(voice()), "never had a rollout"),
        (lambda: retire(alone, A), "answers for acme"),
        (lambda: silence(nobody), "No version answers for acme already"),
        (lambda: upload("../etc", "f.tar.gz"), "Enter the name of the voice"),
        (lambda: upload("acme", None), "Choose the .tar.gz"),
    ]
    for planned, words in cases:
        with pytest.raises(PlanError, match=words):
            planned()


def test_taking_a_voice_away_is_done_to_what_was_seen_only() -> None:
    plan = silence(voice(rollout(5, 4, a=100)))
    assert (plan.method, plan.path, plan.seen) == ("DELETE", "/admin/adapters/acme", ("acme", 5))
    assert isinstance(retire(voice(rollout(5, 4, a=100)), B), Plan)


def test_refusals_in_words() -> None:
    assert "someone else changed it first" in refusal(ApiError("x", "changed_meanwhile", 409))[0]
    said, reasons = refusal(ApiError("x\ny\nz --force", "gates_failed", 422, ("one", "two")))
    assert (said, reasons) == ("Nothing was changed: 2 gates failed.", ["one", "two"])
    said, reasons = refusal(ApiError("x\ny", "manifest_invalid", 422, ("x", "y")))
    assert ("2 reasons" in said, reasons) == (True, ["x", "y"])
    assert refusal(ApiError("acme has no such thing.", "voice_not_found", 404)) == ("acme has no such thing.", [])


def test_who_answers_in_words() -> None:
    assert rollout_words(None) == "no version answers"
    assert rollout_words(rollout(1, a=2, b=1)) == f"{A} 66.7 %, {B} 33.3 %"
    assert rollout_words(rollout(1, a=100, b=0)) == f"{A} 100 %"


def test_states_of_versions_in_words() -> None:
    def words(state: str, reason: str | None = None, resident: bool = False) -> str:
        return state_words({"version": A, "state": state, "reason": reason, "resident": resident})

    assert words("ready", resident=True) == "ready, loaded"
    assert "evicted" in words("ready")
    assert "failed: no file" in words("failed", "no file")
    assert words("published", "crowded").endswith("(crowded)")
    assert words("what next") == "what next"


def test_retired_versions_are_known_from_the_rollouts_they_were_in() -> None:
    known = all_versions(voice(rollout(2, 1, a=100), rollout(1, None, c=100), a="ready", b="ready"))
    assert [(one["version"], one["state"]) for one in known] == [(A, "ready"), (B, "ready"), (C, "retired")]


def test_a_server_that_lags_behind_says_so() -> None:
    behind = {**voice(rollout(2, 1, b=100)), "answers": rollout(1, None, a=100)}
    assert f"still uses generation 1 ({A} 100 %)" in lag_words(behind)
    assert "answers for none" in lag_words({**behind, "answers": None})
    assert lag_words(voice(rollout(2, 1, b=100))) == ""


def test_the_audit_log_in_words() -> None:
    def entry(action: str, before: Any, after: Any, target: str = "acme") -> str:
        return audit_words({"action": action, "target": target, "before": before, "after": after})

    forced = {**rollout(2, b=100), "forced": True, "failed_gates": {B: ["max_empty", "min_tone"]}}
    assert entry("rollout", rollout(1, a=100), forced) == (
        f"changed who answers for acme: from {A} 100 % to {B} 100 %; by force: {B} failed max_empty, min_tone."
    )
    assert entry("remove_voice", rollout(1, a=100), None).endswith(f"from {A} 100 % to no version answers.")
    assert entry("publish", None, "published", A) == f"published {A}."
    assert entry("new_thing {0}", None, None) == "new_thing {0}: acme."


def test_nothing_from_elsewhere_becomes_html_or_a_template() -> None:
    bad = "<img src=x onerror=alert(1)>${alert(1)}{{value}}"
    made = joined(paragraph(bad), table(bad, [bad], [[bad]]), failure(bad, [bad]), bad)
    assert "<img" not in made
    assert not set("${}") & set(made)
    assert Html.escape(Html.escape("<b>")) == "&lt;b&gt;"
    found = {**voice(rollout(1, a=100)), "name": bad}
    assert "<img" not in voice_panel(found)


def test_what_is_known_of_a_version() -> None:
    evaluation = {
        "passed": False,
        "verdict": "not good enough",
        "reasons": [{"gate": "max_empty", "message": "max_empty: is 0.200"}],
        "not_measured": {"min_tone": "too few conversations"},
        "when": "2026-01-01T10:00:00+00:00",
        "data": {"path": "held_out.jsonl", "rows": 30, "tokens": 900},
    }
    manifest = {"base": "tiny", "rank": 4, "targets": ["q_proj"], "rows": 2_000, "assistant_tokens": 31_000}
    more = {"held_out_loss": 2.0, "base_loss": 3.0, "parent_loss": None, "licence": "Apache-2.0"}
    known = {"version": A, "state": "ready", "resident": True, "manifest": {**manifest, **more}}
    panel = version_panel({**known, "evaluation": evaluation})
    for words in (
        "Verdict: not good enough (evaluated 2026-01-01 10:00 UTC on 30 conversations of held_out.jsonl).",
        "max_empty: is 0.200",
        "min_tone: too few conversations",
        "2,000 conversations, 31,000 tokens of answers",
        "2.000; the base has 3.000",
        "rank 4 on q_proj",
    ):
        assert words in panel
    passed = version_panel({**known, "evaluation": {**evaluation, "passed": True, "verdict": "good", "reasons": []}})
    assert "No gate failed." in passed
    unknown = version_panel({"version": A, "state": "published", "manifest": None, "evaluation": None})
    assert f"polytone evaluate {A}" in unknown
    assert "its files are not on this server, or are damaged" in unknown
