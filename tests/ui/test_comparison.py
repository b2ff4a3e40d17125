"""A comparison without a page: who is shown where, what a vote says, prompts to work through, answers at once."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from polytone.contract.version_id import voice_of
from polytone.ui.compare.asking import asked_with, at_its_end
from polytone.ui.compare.blind import choice_of, order_of, shown_left
from polytone.ui.compare.comparison import Comparison, Session
from polytone.ui.compare.prompts import MOST_PROMPTS, PromptsError, as_text, asked, prompts_of
from polytone.ui.compare.view import HIDDEN, side
from polytone.ui.sides import Halt, side_by_side
from polytone.ui.thread import Turn

VERSIONS = ("acme@111111111111", "zest@222222222222", "tiny")
WHOLE: dict[str, Any] = {"finish": "stop", "usage": {"completion_tokens": 5}, "first_token_seconds": 0.1}


def comparison(order: tuple[int, ...] = (0, 1), blind: bool = True, over: bool = True) -> Comparison:
    """One that has every answer."""
    versions = VERSIONS[: len(order)]
    answers = tuple(
        Turn(f"t{number}", None, "assistant", "Hi", f"c{number}", {**WHOLE, "version": version})
        for number, version in enumerate(versions)
    )
    models = tuple(voice_of(version) for version in versions)
    return Comparison("k1", asked("Hello"), models, order, blind, answers, over)


def broken(one: Comparison, number: int, **details: Any) -> Comparison:
    answers = list(one.answers)
    answers[number] = replace(answers[number], details={**answers[number].details, **details})
    return replace(one, answers=tuple(answers))


def test_two_are_shuffled_evenly_and_only_if_blind() -> None:
    random = Random(7)
    orders = [order_of(2, True, random) for _ in range(1000)]
    assert set(orders) == {(0, 1), (1, 0)}
    assert 420 < orders.count((0, 1)) < 580
    assert [order_of(2, True, Random(3)) for _ in range(2)] == [order_of(2, True, Random(3))] * 2
    assert {order_of(2, False, random) for _ in range(50)} == {(0, 1)}


@pytest.mark.parametrize(
    ("order", "vote", "choice", "left"),
    [
        ((0, 1), "a", "a", "a"),
        ((0, 1), "b", "b", "a"),
        ((1, 0), "a", "b", "b"),
        ((1, 0), "b", "a", "b"),
        ((1, 0), "tie", "tie", "b"),
        ((1, 0), "both_bad", "both_bad", "b"),
    ],
)
def test_a_vote_for_a_place_is_one_for_a_model(order: tuple[int, ...], vote: str, choice: str, left: str) -> None:
    assert (choice_of(vote, order), shown_left(order)) == (choice, left)
    body = comparison(order).preference(vote, " Robin ")
    assert body == {
        "key": "preference",
        "pair": {"a": "c0", "b": "c1", "shown": left, "blind": True},
        "value": choice,
        "annotator": {"id": "Robin", "kind": "human"},
        "idempotency_key": "k1",
    }
    session = Session(comparison=comparison(order)).voted(vote)
    assert [(one.a, one.b, one.choice) for one in session.votes] == [(*VERSIONS[:2], choice)]
    assert f"A was {VERSIONS[order[0]]}, B was {VERSIONS[order[1]]}" in session.notice


def test_a_blind_comparison_names_nobody_before_the_vote() -> None:
    for order in ((0, 1), (1, 0)):
        for over in (False, True):
            words = repr([side(comparison(order, over=over), place) for place in range(4)])
            assert "acme" not in words
            assert "zest" not in words
            assert HIDDEN in words
        voted = Session(comparison=comparison(order)).voted("tie").comparison
        assert [VERSIONS[order[place]] in repr(side(voted, place)) for place in range(2)] == [True, True]


def test_a_failure_stays_unnamed_while_the_other_answers() -> None:
    failed = broken(comparison(over=False), 1, error="zest is loading", finish="error")
    assert "zest" not in repr([side(failed, place) for place in range(2)])
    over = replace(failed, over=True)
    assert (over.votable, over.named) == (False, True)
    assert "zest is loading" in repr(side(over, 1))


def test_only_two_whole_answers_can_be_voted_on_and_once() -> None:
    assert comparison().votable
    assert not comparison(over=False).votable
    assert not comparison((0, 1, 2), blind=False).votable
    assert not broken(comparison(), 0, error="no", finish="error").votable
    assert not broken(comparison(), 0, usage=None, finish="stopped").votable
    session = Session(comparison=comparison()).voted("a")
    assert session.voted("b") is session
    halted = at_its_end(broken(comparison(over=False), 0, under_way=True, usage=None, finish=None))
    assert (halted.over, halted.votable, halted.named) == (True, False, True)
    assert at_its_end(comparison(over=False)).votable


def test_a_set_goes_on_after_a_vote_and_ends() -> None:
    prompts = (asked("One"), asked("Two"))
    first = Session(prompts, 1, comparison())
    assert (first.progress, first.voted("a").due) == ("1 of 2", True)
    last = Session(prompts, 2, comparison()).voted("a")
    assert (last.progress, last.due) == ("All 2 prompts are done.", False)
    assert not Session(comparison=comparison()).voted("a").due


def test_requests_have_what_was_set_and_nothing_else() -> None:
    asking = asked_with("", ["acme", " acme@1 ", "acme"], True, None, 40.0, 7.0)
    assert asking.models == ("acme", "acme@1")
    wanted = {"model": "acme", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 40, "seed": 7}
    assert asking.comparison(asked(" Hi "), Random(1)).answers[0].details["request"] == wanted
    assert asking.comparison(asked("Hi"), Random(1)).blind
    three = replace(asking, chosen=["a", "b", "c"]).comparison(asked("Hi"), Random(1))
    assert (three.blind, three.order) == (False, (0, 1, 2))


def test_prompts_come_from_lines_and_files(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Two"},
        {"messages": [{"role": "user", "content": "Three"}, {"role": "assistant", "content": "An answer"}]},
        {"messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Four"}], "id": 9},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = prompts_of("One\n\n", str(file))
    assert [as_text(prompt) for prompt in found] == ["One", "Two", "Three", "System: Be brief\n\nUser: Four"]
    plain = tmp_path / "prompts.txt"
    plain.write_text("Five\r\n{not json}\n", "utf-8-sig")
    assert [as_text(prompt) for prompt in prompts_of("", str(plain))] == ["Five", "{not json}"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "line 2: is not JSON"),
        ("[1]", "line 2: needs"),
        ('{"text": "x"}', "line 2: needs"),
        ('{"messages": [{"role": "user", "content": 5}]}', "line 2: needs"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "line 2: has no question"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, words: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "One"}}\n{row}\n')
    with pytest.raises(PromptsError, match=words):
        prompts_of("", str(file))


def test_no_prompts_too_many_and_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match="no prompts"):
        prompts_of("  \n", None)
    with pytest.raises(PromptsError, match="more than"):
        prompts_of("x\n" * (MOST_PROMPTS + 1), None)
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PromptsError, match="UTF-8"):
        prompts_of("", str(tmp_path / "p.txt"))


async def test_answers_come_side_by_side() -> None:
    gate = asyncio.Event()

    async def stream(name: str, gate: asyncio.Event | None) -> AsyncIterator[str]:
        yield f"{name}1"
        if gate is not None:
            await gate.wait()
        yield f"{name}2"

    both = side_by_side([stream("x", None), stream("y", gate)], ["", ""], Halt().begin())
    seen = [await anext(both)]
    while seen[-1] != ("x2", "y1"):
        seen.append(await anext(both))
    gate.set()
    seen += [moment async for moment in both]
    assert seen[-1] == ("x2", "y2")


@pytest.mark.parametrize("by", ["closing", "halting"])
async def test_answers_are_left_together(by: str) -> None:
    left: list[str] = []

    async def stream(name: str) -> AsyncIterator[str]:
        try:
            yield f"{name}1"
            await asyncio.Event().wait()
        finally:
            left.append(name)

    halt = Halt()
    both = side_by_side([stream("x"), stream("y")], ["", ""], halt.begin())
    await anext(both)
    if by == "halting":
        halt.now()
        async with asyncio.timeout(5):
            assert [moment async for moment in both][-1] == ("x1", "y1")
    await both.aclose()
    assert sorted(left) == ["x", "y"]
