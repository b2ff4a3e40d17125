"""A conversation's turns as JSON lines to train on: one for every way it went."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from polytone.contract.rows import Conversation
from polytone.serve.database.tables import TurnRow


def lines_of(conversation: str, turns: Sequence[TurnRow]) -> Iterator[str]:
    """A line for every branch, to its last answer; one that never got an answer has none, nor has one in which turns
    do not take turns, which training would refuse."""
    by_id = {turn.id: turn for turn in turns}
    for end in ends(turns):
        path = path_to(end, by_id)
        messages = [{"role": turn.role, "content": turn.content} for turn in path]
        if not can_be_learned(messages):
            continue
        answers = [turn for turn in path if turn.role == "assistant"]
        line = {
            "messages": messages,
            "conversation_id": conversation,
            "completion_ids": [turn.completion_id for turn in answers],
            "versions": [model_of(turn.details) for turn in answers],
        }
        yield f"{json.dumps(line, ensure_ascii=False)}\n"


def ends(turns: Sequence[TurnRow]) -> list[TurnRow]:
    """The answers that no other answer follows. A turn stands behind its parent in `turns`."""
    answer_before: dict[str | None, str | None] = {None: None}
    followed: set[str | None] = set()
    for turn in turns:
        above = answer_before[turn.parent]
        answer_before[turn.id] = above
        if is_answer(turn):
            followed.add(above)
            answer_before[turn.id] = turn.id
    return [turn for turn in turns if is_answer(turn) and turn.id not in followed]


def is_answer(turn: TurnRow) -> bool:
    return turn.role == "assistant" and bool(turn.content.strip())


def path_to(end: TurnRow, by_id: dict[str, TurnRow]) -> list[TurnRow]:
    """From the first turn to `end`; turns without a word, such as answers that never came, are left out."""
    path: list[TurnRow] = []
    at: TurnRow | None = end
    while at is not None:
        if at.content.strip():
            path.append(at)
        at = by_id[at.parent] if at.parent else None
    return path[::-1]


def can_be_learned(messages: list[dict[str, str]]) -> bool:
    try:
        Conversation.model_validate({"messages": messages})
    except ValidationError:
        return False
    return True


def model_of(details: dict[str, Any]) -> str | None:
    """Who answered: the exact version, or the model that was asked for."""
    found = details.get("version") or details.get("model")
    return str(found)[:80] if found else None
