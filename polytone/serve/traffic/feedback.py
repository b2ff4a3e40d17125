"""Feedback on answers, from people and programs. Rows are only ever added, and are on disk before their 201."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from polytone.contract.errors import ConflictError, InputError, NotFoundError, TooLargeError
from polytone.serve.database.session import FEEDBACK, Database, one_at_a_time, reading, writing
from polytone.serve.database.tables import FeedbackRow

from .capture import CompletionRef
from .reviews import ask_for_review
from .schemas import Annotator, FeedbackBody

LONGEST_TEXT = 20_000
PAGE = 100


@dataclass(frozen=True)
class SavedFeedback:
    """Stored feedback; `created` is false if the same feedback had been stored before."""

    row: FeedbackRow
    created: bool


class FeedbackStore:
    """The feedback in the database. Methods block: call them in a thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def give(
        self,
        body: FeedbackBody,
        target: CompletionRef | None,
        annotator: Annotator,
        adapters: frozenset[str] | None = None,
    ) -> SavedFeedback:
        """Add a row; it is on disk when this returns.

        Args:
            target: the answer the feedback is about; None for a retraction, whose target is that of the retracted row.
            adapters: the voices whose feedback the caller may see and supersede; None for all.

        Raises:
            ConflictError: `idempotency_conflict` if the annotator used the key for something else,
                `already_superseded` if the feedback it supersedes was superseded before.
            NotFoundError: `feedback_not_found` for the feedback it supersedes.
            TooLargeError: `text_too_long`.
        """
        if len(body.text or "") > LONGEST_TEXT:
            raise TooLargeError(
                f"text: {len(body.text or '')} characters are more than the limit of {LONGEST_TEXT}.",
                code="text_too_long",
                param="text",
            )
        if existing := self._repeated(body, target, annotator, adapters):
            return SavedFeedback(existing, False)
        try:
            with writing(self._database) as session:
                one_at_a_time(session, FEEDBACK)
                row = new_row(body, target, annotator)
                if body.supersedes is not None:
                    replace_earlier(row, superseded(session, body.supersedes, annotator, adapters))
                session.add(row)
                session.flush()
                ask_for_review(session, row)
            return SavedFeedback(row, True)
        except IntegrityError:
            if existing := self._repeated(body, target, annotator, adapters):
                return SavedFeedback(existing, False)  # the same feedback was sent twice at the same moment
            raise ConflictError(
                f"{body.supersedes} was superseded or retracted before.", code="already_superseded", param="supersedes"
            ) from None

    def _repeated(
        self, body: FeedbackBody, target: CompletionRef | None, annotator: Annotator, adapters: frozenset[str] | None
    ) -> FeedbackRow | None:
        """The row stored earlier with this idempotency key, if any."""
        if body.idempotency_key is None:
            return None
        with reading(self._database) as session:
            row = session.scalar(
                select(FeedbackRow).where(
                    FeedbackRow.annotator == annotator.id, FeedbackRow.idempotency_key == body.idempotency_key
                )
            )
        if row is None:
            return None
        fresh = new_row(body, target, annotator)
        same = ["key", "supersedes", "annotator_kind"]
        if body.key != "retract":  # a retraction takes these from the retracted row
            same += ["value", "text", "target", "target_id", "other_id"]
        foreign = adapters is not None and row.voice not in adapters
        if foreign or any(getattr(row, name) != getattr(fresh, name) for name in same):
            raise ConflictError(
                f"{annotator.id} used the idempotency key {body.idempotency_key} for other feedback.",
                code="idempotency_conflict",
                param="idempotency_key",
            )
        return row

    def page(
        self,
        adapter: str | None = None,
        version: str | None = None,
        since: datetime | None = None,
        after: int = 0,
        adapters: frozenset[str] | None = None,
        limit: int = PAGE,
    ) -> tuple[list[FeedbackRow], int | None]:
        """Up to `limit` rows in the order they were added, and the cursor of the next page or None.

        Args:
            adapters: only these voices; None for all.
        """
        query = select(FeedbackRow).where(FeedbackRow.number > after).order_by(FeedbackRow.number).limit(limit + 1)
        if adapter is not None:
            query = query.where(FeedbackRow.voice == adapter)
        if version is not None:
            query = query.where(FeedbackRow.version == version)
        if since is not None:
            query = query.where(FeedbackRow.at >= since)
        if adapters is not None:
            query = query.where(FeedbackRow.voice.in_(adapters))
        with reading(self._database) as session:
            rows = list(session.scalars(query))
        return rows[:limit], rows[limit - 1].number if len(rows) > limit else None

    def latest(self, adapter: str | None, limit: int) -> list[FeedbackRow]:
        """The latest `limit` rows, the newest last."""
        query = select(FeedbackRow).order_by(FeedbackRow.number.desc()).limit(limit)
        if adapter is not None:
            query = query.where(FeedbackRow.voice == adapter)
        with reading(self._database) as session:
            return list(session.scalars(query))[::-1]


def new_row(body: FeedbackBody, ref: CompletionRef | None, annotator: Annotator) -> FeedbackRow:
    target, target_id = target_columns(body)
    if target == "conversation" and ref is not None and ref.conversation is not None:
        target_id = ref.conversation  # in the form that the content policy stores
    value: Any = body.value
    if body.pair is not None:
        value = {"choice": body.value, "shown": body.pair.shown, "blind": body.pair.blind}
    return FeedbackRow(
        id=f"fb-{secrets.token_hex(12)}",
        target=target,
        target_id=target_id,
        other_id=body.pair.b if body.pair else None,
        key=body.key,
        value=value,
        text=body.text,
        annotator=annotator.id,
        annotator_kind=annotator.kind,
        idempotency_key=body.idempotency_key,
        supersedes=body.supersedes,
        voice=ref.adapter if ref else None,
        version=ref.version if ref else None,
    )


def target_columns(body: FeedbackBody) -> tuple[str, str]:
    """The columns `target` and `target_id`."""
    if body.pair is not None:
        return "pair", body.pair.a
    if body.conversation_id is not None:
        return "conversation", body.conversation_id
    return "completion", body.completion_id or ""


def superseded(
    session: Session, feedback_id: str, annotator: Annotator, adapters: frozenset[str] | None
) -> FeedbackRow:
    row = session.scalar(select(FeedbackRow).where(FeedbackRow.id == feedback_id))
    if row is None or row.annotator != annotator.id or (adapters is not None and row.voice not in adapters):
        raise NotFoundError(f"{annotator.id} gave no feedback {id}.", code="feedback_not_found", param="supersedes")
    return row


def replace_earlier(row: FeedbackRow, earlier: FeedbackRow) -> None:
    """Let a row replace an earlier one, which must have the same target and key."""
    if row.key == "retract":
        row.target, row.target_id, row.other_id = earlier.target, earlier.target_id, earlier.other_id
        row.voice, row.version = earlier.voice, earlier.version
    elif (row.key, row.target_id, row.other_id) != (earlier.key, earlier.target_id, earlier.other_id):
        raise InputError(
            f"{earlier.id} is a {earlier.key} on {earlier.target_id}; only the same key and target replace it.",
            code="invalid_request",
            param="supersedes",
        )


def active_feedback(session: Session, until: datetime, *conditions: Any) -> Sequence[FeedbackRow]:
    """Rows in force at `until`: neither superseded nor retracted by then, in the order they were added."""
    later = aliased(FeedbackRow)
    query = (
        select(FeedbackRow)
        .outerjoin(later, and_(later.supersedes == FeedbackRow.id, later.at <= until))
        .where(later.id.is_(None), FeedbackRow.key != "retract", FeedbackRow.at <= until, *conditions)
        .order_by(FeedbackRow.number)
    )
    return session.scalars(query).all()


def as_json(row: FeedbackRow) -> dict[str, Any]:
    """A row as the API returns it."""
    fields: dict[str, Any] = {
        "id": row.id,
        "at": row.at.isoformat(),
        "adapter": row.voice,
        "version": row.version,
        "key": row.key,
        "value": row.value["choice"] if isinstance(row.value, dict) else row.value,
        "text": row.text,
        "annotator": {"id": row.annotator, "kind": row.annotator_kind},
        "supersedes": row.supersedes,
    }
    if row.target == "pair":
        fields["pair"] = {"a": row.target_id, "b": row.other_id, **without_choice(row.value)}
    else:
        fields[f"{row.target}_id"] = row.target_id
    return fields


def without_choice(value: Any) -> dict[str, Any]:
    return {key: one for key, one in value.items() if key != "choice"} if isinstance(value, dict) else {}
