"""Conversations kept by testers: trees of turns that are added once and never changed."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import and_, delete, exists, func, or_, select
from sqlalchemy.orm import Session

from polytone.contract.errors import ConflictError, InputError, NotFoundError
from polytone.serve.database.session import Database, now, reading, writing
from polytone.serve.database.tables import ConversationRow, TurnRow

from .conversation_export import ConversationExport, model_of
from .schemas import TurnBody

LONGEST_TITLE = 80
CONVERSATION_ID = r"conv_[0-9a-f]{32}"
CURSOR = rf"^[0-9]{{1,17}}-{CONVERSATION_ID}$"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
NEWEST = (ConversationRow.updated_at.desc(), ConversationRow.id)


@dataclass(frozen=True)
class StoredConversation:
    """A conversation, the number of its turns and, if requested, the turns in the order they were added."""

    row: ConversationRow
    count: int
    turns: tuple[TurnRow, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.row.id,
            "title": self.row.title,
            "model": self.row.model,
            "created_at": self.row.created_at.isoformat(),
            "updated_at": self.row.updated_at.isoformat(),
            "turns": self.count if self.turns is None else [turn_json(turn) for turn in self.turns],
        }


class Conversations:
    """The conversations in the database. Each method sees those of `owner` only. Methods block."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, owner: str, title: str = "") -> StoredConversation:
        moment, name = now(), f"conv_{secrets.token_hex(16)}"
        row = ConversationRow(id=name, owner=owner, title=title.strip(), created_at=moment, updated_at=moment)
        with writing(self._database) as session:
            session.add(row)
            session.flush()
        return StoredConversation(row, 0)

    def add(self, owner: str, conversation: str, body: TurnBody) -> TurnRow:
        """Add a turn.

        Raises:
            NotFoundError: `conversation_not_found`.
            InputError: `invalid_request` if there is no such parent.
            ConflictError: `idempotency_conflict` if the id belongs to a turn with other content.
        """
        with writing(self._database) as session:
            row = owned(session, owner, conversation, lock=True)
            if body.id is not None and (existing := turn_of(session, conversation, body.id)):
                return same_turn(existing, body)
            if body.parent is not None and turn_of(session, conversation, body.parent) is None:
                raise InputError(
                    f"parent: {conversation} has no turn {body.parent}.", code="invalid_request", param="parent"
                )
            fields = body.model_dump(exclude={"id"})
            turn = TurnRow(id=body.id or f"turn_{secrets.token_hex(16)}", conversation=conversation, **fields)
            session.add(turn)
            row.updated_at = now()
            if body.role == "user" and not row.title:
                row.title = first_line(body.content)
            if body.role == "assistant":
                row.model = model_of(body.details) or row.model
            session.flush()
            return turn

    def get(self, owner: str, conversation: str) -> StoredConversation:
        """Raises NotFoundError `conversation_not_found`."""
        with reading(self._database) as session:
            row = owned(session, owner, conversation)
            turns = turns_of(session, conversation)
            return StoredConversation(row, len(turns), tuple(turns))

    def page(
        self, owner: str, search: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> tuple[list[StoredConversation], str | None]:
        """Up to `limit` conversations, the last changed first, and the cursor of the next page or None."""
        counted = (
            select(func.count())
            .select_from(TurnRow)
            .where(TurnRow.conversation == ConversationRow.id)
            .scalar_subquery()
        )
        query = select(ConversationRow, counted).where(*matching(owner, search)).order_by(*NEWEST).limit(limit + 1)
        if cursor is not None:
            query = query.where(after(cursor))
        with reading(self._database) as session:
            rows = [StoredConversation(row, count) for row, count in session.execute(query)]
        return rows[:limit], cursor_of(rows[limit - 1].row) if len(rows) > limit else None

    def delete(self, owner: str, conversation: str) -> int:
        """Delete a conversation; returns how many turns it had.

        Raises:
            NotFoundError: `conversation_not_found`.
        """
        with writing(self._database) as session:
            owned(session, owner, conversation, lock=True)
            return delete_conversation(session, conversation)

    def export(
        self, owner: str, conversation: str | None = None, search: str | None = None, until: datetime | None = None
    ) -> ConversationExport:
        """One conversation, or all that `search` finds, as they were at `until`, by default now.

        Raises:
            NotFoundError: `conversation_not_found`.
        """
        until = until or now()
        with reading(self._database) as session:
            if conversation is not None:
                conversations: Sequence[str] = [owned(session, owner, conversation).id]
            else:
                query = select(ConversationRow.id).where(ConversationRow.created_at <= until)
                query = query.where(*matching(owner, search, until))
                conversations = session.scalars(
                    query.order_by(ConversationRow.created_at.desc(), ConversationRow.id)
                ).all()
        filters = {"conversation_id": conversation, "search": search}
        return ConversationExport(self._database, conversations, until, filters)


def owned(session: Session, owner: str, conversation: str, lock: bool = False) -> ConversationRow:
    row = None
    if re.fullmatch(CONVERSATION_ID, conversation):
        row = session.get(ConversationRow, conversation, with_for_update=lock)
    if row is None or row.owner != owner:
        raise NotFoundError(
            f"There is no conversation {conversation!r}.", code="conversation_not_found", param="conversation_id"
        )
    return row


def turn_of(session: Session, conversation: str, turn: str) -> TurnRow | None:
    return session.scalar(select(TurnRow).where(TurnRow.conversation == conversation, TurnRow.id == turn))


def turns_of(session: Session, conversation: str) -> Sequence[TurnRow]:
    return session.scalars(select(TurnRow).where(TurnRow.conversation == conversation).order_by(TurnRow.number)).all()


def same_turn(existing: TurnRow, body: TurnBody) -> TurnRow:
    if any(getattr(existing, name) != value for name, value in body.model_dump().items()):
        raise ConflictError(
            f"{existing.id} was sent before with other content.", code="idempotency_conflict", param="id"
        )
    return existing


def matching(owner: str, search: str | None, until: datetime | None = None) -> list[Any]:
    """Conditions: the owner's, with `search` in the title or in a turn (until then), ignoring case."""
    if not search:
        return [ConversationRow.owner == owner]
    in_turn = exists().where(
        TurnRow.conversation == ConversationRow.id, TurnRow.content.icontains(search, autoescape=True)
    )
    if until is not None:
        in_turn = in_turn.where(TurnRow.at <= until)
    return [ConversationRow.owner == owner, or_(ConversationRow.title.icontains(search, autoescape=True), in_turn)]


def cursor_of(row: ConversationRow) -> str:
    """A position in the list that stays valid when a conversation moves to the front."""
    return f"{(row.updated_at - EPOCH) // MICROSECOND}-{row.id}"


def after(cursor: str) -> Any:
    moment, _, last = cursor.partition("-")
    at = EPOCH + int(moment) * MICROSECOND
    return or_(ConversationRow.updated_at < at, and_(ConversationRow.updated_at == at, ConversationRow.id > last))


def delete_conversation(session: Session, conversation: str) -> int:
    """Delete a conversation, whoever owns it; returns how many turns it had."""
    session.get(ConversationRow, conversation, with_for_update=True)  # no turn can be added meanwhile
    deleted = session.execute(delete(TurnRow).where(TurnRow.conversation == conversation))
    session.execute(delete(ConversationRow).where(ConversationRow.id == conversation))
    return int(getattr(deleted, "rowcount", 0))


def turn_json(turn: TurnRow) -> dict[str, Any]:
    return {
        "id": turn.id,
        "parent": turn.parent,
        "role": turn.role,
        "content": turn.content,
        "completion_id": turn.completion_id,
        "details": turn.details,
        "at": turn.at.isoformat(),
    }


def first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip()[:LONGEST_TITLE] if lines else ""
