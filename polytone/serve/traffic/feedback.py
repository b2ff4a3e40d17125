"""Feedback: what people and programs say of answers. Rows are only ever added, and are on disk before their 201."""

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
    """A feedback that was taken; `created` is false where the same one had been taken before."""

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
        """Add a row; when this returns it is on disk.

        Args:
            target: whose answer is meant; None for a retraction, which is about what the retracted one was about.
            adapters: the voices whose feedback the caller may see and supersede; None for all.

        Raises:
            ConflictError: `idempotency_conflict` if the annotator used the key for something else,
                `already_superseded` if the feedback it supersedes was superseded before.
            NotFoundError: `feedback_not_found` for what it supersedes.
            TooLargeError: `text_too_long`.
        """
        if len(body.text or "") > LONGEST_TEXT:
            raise TooLargeError(
                f"text: {len(body.text or '')} characters are more than the {LONGEST_TEXT} that feedback takes.",
                code="text_too_long",
                param="text",
            )
        if known := self._repeated(body, target, annotator, adapters):
            return SavedFeedback(known, False)
        try:
            with writing(self._database) as session:
                one_at_a_time(session, FEEDBACK)
                row = new_row(body, target, annotator)
                if body.supersedes is not None:
                    place(row, superseded(session, body.supersedes, annotator, adapters))
                session.add(row)
                session.flush()
                ask_for_review(session, row)
            return SavedFeedback(row, True)
        except IntegrityError:
            if known := self._repeated(body, target, annotator, adapters):
                return SavedFeedback(known, False)  # the same one, sent twice at once
            raise ConflictError(
                f"{body.supersedes} was superseded or retracted before.", code="already_superseded", param="supersedes"
            ) from None

    def _repeated(
        self, body: FeedbackBody, target: CompletionRef | None, annotator: Annotator, adapters: frozenset[str] | None
    ) -> FeedbackRow | None:
        """The row that was made with this idempotency key before."""
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
        if body.key != "retract":  # a retraction is about whatever the retracted one was about
            same += ["value", "text", "target", "target_id", "other_id"]
        foreign = adapters is not None and row.voice not in adapters
        if foreign or any(getattr(row, name) != getattr(fresh, name) for name in same):
            raise ConflictError(
                f"{annotator.id} used the idempotency key {body.idempotency_key} for another feedback.",
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
            adapters: only of these voices; None for all.
        """
        wanted = select(FeedbackRow).where(FeedbackRow.number > after).order_by(FeedbackRow.number).limit(limit + 1)
        if adapter is not None:
            wanted = wanted.where(FeedbackRow.voice == adapter)
        if version is not None:
            wanted = wanted.where(FeedbackRow.version == version)
        if since is not None:
            wanted = wanted.where(FeedbackRow.at >= since)
        if adapters is not None:
            wanted = wanted.where(FeedbackRow.voice.in_(adapters))
        with reading(self._database) as session:
            rows = list(session.scalars(wanted))
        return rows[:limit], rows[limit - 1].number if len(rows) > limit else None

    def latest(self, adapter: str | None, limit: int) -> list[FeedbackRow]:
        """The last `limit` rows, the newest last."""
        wanted = select(FeedbackRow).order_by(FeedbackRow.number.desc()).limit(limit)
        if adapter is not None:
            wanted = wanted.where(FeedbackRow.voice == adapter)
        with reading(self._database) as session:
            return list(session.scalars(wanted))[::-1]


def new_row(body: FeedbackBody, of: CompletionRef | None, annotator: Annotator) -> FeedbackRow:
    target, target_id = target_columns(body)
    if target == "conversation" and of is not None and of.conversation is not None:
        target_id = of.conversation  # as the content policy keeps it
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
        voice=of.adapter if of else None,
        version=of.version if of else None,
    )


def target_columns(body: FeedbackBody) -> tuple[str, str]:
    if body.pair is not None:
        return "pair", body.pair.a
    if body.conversation_id is not None:
        return "conversation", body.conversation_id
    return "completion", body.completion_id or ""


def superseded(session: Session, wanted: str, annotator: Annotator, adapters: frozenset[str] | None) -> FeedbackRow:
    row = session.scalar(select(FeedbackRow).where(FeedbackRow.id == wanted))
    if row is None or row.annotator != annotator.id or (adapters is not None and row.voice not in adapters):
        raise NotFoundError(f"{annotator.id} gave no feedback {wanted}.", code="feedback_not_found", param="supersedes")
    return row


def place(row: FeedbackRow, earlier: FeedbackRow) -> None:
    """Put a row in the place of an earlier one; it has to be about the same."""
    if row.key == "retract":
        row.target, row.target_id, row.other_id = earlier.target, earlier.target_id, earlier.other_id
        row.voice, row.version = earlier.voice, earlier.version
    elif (row.key, row.target_id, row.other_id) != (earlier.key, earlier.target_id, earlier.other_id):
        raise InputError(
            f"{earlier.id} is {earlier.key} on {earlier.target_id}; only the same can take its place.",
            code="invalid_request",
            param="supersedes",
        )


def active_feedback(session: Session, until: datetime, *conditions: Any) -> Sequence[FeedbackRow]:
    """What held at `until`: rows that nothing had superseded or retracted, in the order they were added."""
    later = aliased(FeedbackRow)
    wanted = (
        select(FeedbackRow)
        .outerjoin(later, and_(later.supersedes == FeedbackRow.id, later.at <= until))
        .where(later.id.is_(None), FeedbackRow.key != "retract", FeedbackRow.at <= until, *conditions)
        .order_by(FeedbackRow.number)
    )
    return session.scalars(wanted).all()


def as_json(row: FeedbackRow) -> dict[str, Any]:
    """A row as the API shows it."""
    shown: dict[str, Any] = {
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
        shown["pair"] = {"a": row.target_id, "b": row.other_id, **without_choice(row.value)}
    else:
        shown[f"{row.target}_id"] = row.target_id
    return shown


def without_choice(value: Any) -> dict[str, Any]:
    return {key: one for key, one in value.items() if key != "choice"} if isinstance(value, dict) else {}
