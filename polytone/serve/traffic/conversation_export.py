"""Exports of conversations as training rows: one row for every branch, up to its last answer."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from polytone.contract.export import ExportFormat, ExportManifest, ExportSplit
from polytone.contract.rows import Conversation
from polytone.serve.database.session import Database, reading
from polytone.serve.database.tables import ReviewRow, TurnRow

from .export_rows import Json, LeftOutError


@dataclass(frozen=True)
class ConversationExport:
    """The conversations to export, as they were at `until`. Rows and manifest are made on demand; both block.

    They agree as long as none of the conversations is deleted and no review is changed in between.
    """

    database: Database
    conversations: Sequence[str]
    until: datetime
    filters: dict[str, Any]

    def lines(self) -> Iterator[str]:
        """JSON lines, read one conversation at a time."""
        for row in self._rows(Counter()):
            yield as_line(row)

    def manifest(self) -> ExportManifest:
        digest, left_out, count = hashlib.sha256(), Counter[str](), 0
        completions: set[str] = set()
        versions: set[str] = set()
        for row in self._rows(left_out):
            digest.update(as_line(row).encode())
            count += 1
            completions.update(completion for completion in row["completion_ids"] if completion)
            versions.update(version for version in row["versions"] if version)
        return ExportManifest(
            format=ExportFormat.SFT,
            split=ExportSplit.TRAIN,
            sha256=digest.hexdigest(),
            rows=count,
            adapter=None,
            completions=sorted(completions),
            versions=sorted(versions),
            left_out=dict(sorted(left_out.items())),
            filters={"until": self.until.isoformat(), **self.filters},
            created=self.until,
        )

    def _rows(self, left_out: Counter[str]) -> Iterator[Json]:
        for conversation in self.conversations:
            with reading(self.database) as session:
                turns = turns_until(session, conversation, self.until)
                rejected = rejected_answers(session, turns, self.until)
            yield from branch_rows(conversation, turns, rejected, left_out)


def as_line(row: Json) -> str:
    return f"{json.dumps(row, ensure_ascii=False)}\n"


def turns_until(session: Session, conversation: str, until: datetime) -> Sequence[TurnRow]:
    query = select(TurnRow).where(TurnRow.conversation == conversation, TurnRow.at <= until)
    return session.scalars(query.order_by(TurnRow.number)).all()


def rejected_answers(session: Session, turns: Sequence[TurnRow], until: datetime) -> set[str]:
    """The completion ids among `turns` that a reviewer rejected."""
    completions = {turn.completion_id for turn in turns if turn.completion_id}
    query = select(ReviewRow.completion_id).where(ReviewRow.completion_id.in_(completions))
    return set(session.scalars(query.where(ReviewRow.state == "rejected", ReviewRow.decided_at <= until)))


def branch_rows(
    conversation: str, turns: Sequence[TurnRow], rejected: set[str], left_out: Counter[str]
) -> Iterator[Json]:
    """A row for each branch, to its last answer; counts in `left_out` why others have none.

    A parent comes before its children in `turns`.
    """
    by_id = {turn.id: turn for turn in turns}
    ends = last_answers(turns)
    if turns and not ends:
        left_out["a conversation without an answer"] += 1
    for end in ends:
        try:
            yield branch_row(conversation, path_to(end, by_id), rejected)
        except LeftOutError as reason:
            left_out[str(reason)] += 1


def branch_row(conversation: str, path: list[TurnRow], rejected: set[str]) -> Json:
    answers = [turn for turn in path if turn.role == "assistant"]
    if any(turn.completion_id in rejected for turn in answers):
        raise LeftOutError("an answer was rejected in review")
    messages = [{"role": turn.role, "content": turn.content} for turn in path]
    try:
        Conversation.model_validate({"messages": messages})
    except ValidationError:
        raise LeftOutError("its messages cannot be trained on") from None
    return {
        "messages": messages,
        "conversation_id": conversation,
        "completion_ids": [turn.completion_id for turn in answers],
        "versions": [model_of(turn.details) for turn in answers],
    }


def last_answers(turns: Sequence[TurnRow]) -> list[TurnRow]:
    """The answers that no other answer follows on any branch."""
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
    """The turns from the first to `end`, without empty ones such as answers that never came."""
    path: list[TurnRow] = []
    turn: TurnRow | None = end
    while turn is not None:
        if turn.content.strip():
            path.append(turn)
        turn = by_id[turn.parent] if turn.parent else None
    return path[::-1]


def model_of(details: dict[str, Any]) -> str | None:
    """The version that gave an answer, or the model that was asked for."""
    model = details.get("version") or details.get("model")
    return str(model)[:80] if model else None
