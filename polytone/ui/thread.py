"""A conversation as a tree of turns: a retry or an edit is a sibling, so that no turn is lost."""

import json
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from .wording import minute

LONGEST_LABEL = 60
LONGEST_REQUEST = 32_000


@dataclass(frozen=True)
class Turn:
    """One turn. `details` of an answer: version, usage, times, and its request."""

    id: str
    parent: str | None
    role: str
    content: str
    completion_id: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_answer(self) -> bool:
        return self.role == "assistant"

    def as_json(self) -> dict[str, Any]:
        """As POST /v1/conversations/{id}/turns takes it."""
        return {
            "id": self.id,
            "parent": self.parent,
            "role": self.role,
            "content": self.content,
            "completion_id": self.completion_id,
            "details": {**self.details, **({"request": kept_request(self.details)} if self.is_answer else {})},
        }


def kept_request(details: dict[str, Any]) -> dict[str, Any]:
    """The request, without its messages if they are long: they are the turns before this one."""
    request: dict[str, Any] = details.get("request", {})
    if len(json.dumps(request)) <= LONGEST_REQUEST:
        return request
    return {**request, "messages": "too long to keep with the answer: see the turns before it"}


@dataclass(frozen=True)
class Thread:
    """The turns of a conversation, and the `head`: the last turn of the branch that is shown."""

    id: str | None = None
    title: str = ""
    turns: dict[str, Turn] = field(default_factory=dict)
    head: str | None = None

    def with_turn(self, turn: Turn) -> "Thread":
        """With the turn added, or replacing its earlier state, and shown."""
        return replace(self, turns={**self.turns, turn.id: turn}, head=turn.id)

    def with_message(self, role: str, content: str, parent: str | None = None) -> "Thread":
        return self.with_turn(Turn(new_id(), parent, role, content))

    def path(self, end: str | None = None) -> list[Turn]:
        """From the first turn to `end`, or to the head."""
        turns: list[Turn] = []
        at = end or self.head
        while at is not None:
            turns.append(self.turns[at])
            at = turns[-1].parent
        return turns[::-1]

    def messages(self, end: str | None = None) -> list[dict[str, str]]:
        """The path as messages of a request, without empty turns."""
        return [{"role": turn.role, "content": turn.content} for turn in self.path(end) if turn.content]

    def branches(self) -> list[str]:
        """The last turns of all branches, in their order."""
        followed = {turn.parent for turn in self.turns.values()}
        return [turn for turn in self.turns if turn not in followed]

    def beside(self, step: int) -> "Thread":
        """Show the previous or next branch; at the ends, the same."""
        ends = self.branches()
        if self.head not in ends:
            return self
        return replace(self, head=ends[min(max(ends.index(self.head) + step, 0), len(ends) - 1)])

    def place(self) -> tuple[int, int]:
        """The number of the branch that is shown, from 1, and the number of branches."""
        ends = self.branches()
        return (ends.index(self.head) + 1 if self.head in ends else 1, len(ends))


def new_id() -> str:
    return f"turn_{uuid4().hex}"


def thread_of(saved: dict[str, Any]) -> Thread:
    """A conversation as GET /v1/conversations/{id} gives it, its newest branch shown."""
    turns = {
        turn["id"]: Turn(
            turn["id"], turn["parent"], turn["role"], turn["content"], turn["completion_id"], turn["details"] or {}
        )
        for turn in saved["turns"]
    }
    return Thread(saved["id"], saved["title"] or "", turns, next(reversed(turns), None))


def list_label(saved: dict[str, Any]) -> str:
    """A conversation in one line of the list."""
    title = " ".join((saved.get("title") or "Untitled").split())
    shown = title if len(title) <= LONGEST_LABEL else f"{title[: LONGEST_LABEL - 1]}…"
    when = minute(str(saved["updated_at"]))
    return f"{shown} · {saved['model']} · {when}" if saved.get("model") else f"{shown} · {when}"
