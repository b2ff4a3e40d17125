"""The review queue: answers that a person should judge, leased to one reviewer at a time."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import case, func, or_, select
from sqlalchemy.orm import Session

from polytone.contract.errors import ConflictError, NotFoundError
from polytone.serve.database.session import FEEDBACK, Database, insert_for, now, one_at_a_time, reading, writing
from polytone.serve.database.tables import AnswerRow, FeedbackRow, ReviewRow

LEASE_SECONDS = 900
OPEN = "open"


class Reason(StrEnum):
    """Reasons for an answer to be in the queue, the most urgent first."""

    THUMBS_DOWN = "thumbs_down"
    DISAGREEMENT = "disagreement"
    DRIFT = "drift"
    RANDOM = "random"


class Decision(StrEnum):
    """The answer is good as it is, good after the reviewer's edit, or of no use."""

    ACCEPT = "accept"
    EDIT = "edit"
    REJECT = "reject"


STATES = {Decision.ACCEPT: "accepted", Decision.EDIT: "edited", Decision.REJECT: "rejected"}


@dataclass(frozen=True)
class ReviewItem:
    """An answer to review, leased until `until`."""

    review: ReviewRow
    answer: AnswerRow
    feedback: tuple[FeedbackRow, ...]
    until: datetime


class Reviews:
    """The queue in the database. Methods block: call them in a thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def lease(self, reviewer: str, adapter: str | None = None, seconds: float = LEASE_SECONDS) -> ReviewItem | None:
        """Lease the most urgent item that nobody else holds; without one, a random answer. None if there is no answer.

        An item that the reviewer already holds comes first.
        """
        with writing(self._database) as session:
            one_at_a_time(session, "reviews")
            row = waiting(session, reviewer, adapter) or random_answer(session, adapter)
            if row is None:
                return None
            row.leased_by, row.leased_until = reviewer, now() + timedelta(seconds=seconds)
            answer = session.get_one(AnswerRow, row.completion_id)
            feedback = session.scalars(
                select(FeedbackRow).where(FeedbackRow.target_id == row.completion_id).order_by(FeedbackRow.number)
            )
            return ReviewItem(row, answer, tuple(feedback), row.leased_until)

    def decide(
        self, completion: str, decision: Decision, reviewer: str, correction: FeedbackRow | None = None
    ) -> ReviewRow:
        """Close an item and, for an edit, add its correction in the same transaction.

        Raises:
            NotFoundError: `review_not_found`.
            ConflictError: `review_decided`, or `review_leased` if someone else holds it.
        """
        with writing(self._database) as session:
            if correction is not None:
                one_at_a_time(session, FEEDBACK)
            row = decidable(session, completion, reviewer)
            if correction is not None:
                session.add(correction)
                row.feedback_id = correction.id
            row.state, row.decided_at, row.decided_by = STATES[decision], now(), reviewer
            return row

    def counts(self) -> dict[tuple[str, str], int]:
        """The number of items by (state, reason)."""
        with reading(self._database) as session:
            query = select(ReviewRow.state, ReviewRow.reason, func.count()).group_by(ReviewRow.state, ReviewRow.reason)
            return {(state, reason): count for state, reason, count in session.execute(query)}


def decidable(session: Session, completion: str, reviewer: str) -> ReviewRow:
    row = session.get(ReviewRow, completion, with_for_update=True)
    if row is None:
        raise NotFoundError(f"{completion} is not in the review queue.", code="review_not_found")
    if row.state != OPEN:
        raise ConflictError(f"{completion} was already {row.state} by {row.decided_by}.", code="review_decided")
    leased = row.leased_until is not None and row.leased_until > now()
    if leased and row.leased_by != reviewer:
        raise ConflictError(f"{completion} is being reviewed by {row.leased_by}.", code="review_leased")
    return row


def waiting(session: Session, reviewer: str, adapter: str | None) -> ReviewRow | None:
    urgency = case({reason.value: rank for rank, reason in enumerate(Reason)}, value=ReviewRow.reason, else_=9)
    mine = case((ReviewRow.leased_by == reviewer, 0), else_=1)
    free = or_(ReviewRow.leased_until.is_(None), ReviewRow.leased_until < now(), ReviewRow.leased_by == reviewer)
    recorded = ReviewRow.completion_id.in_(
        select(AnswerRow.id)
    )  # feedback may arrive before the answer's row is written
    query = (
        select(ReviewRow)
        .where(ReviewRow.state == OPEN, free, recorded)
        .order_by(mine, urgency, ReviewRow.added_at)
        .limit(1)
    )
    if adapter is not None:
        query = query.where(ReviewRow.voice == adapter)
    return session.scalar(query.with_for_update(skip_locked=True))


def random_answer(session: Session, adapter: str | None) -> ReviewRow | None:
    """A new item for a random answer that is not in the queue."""
    reviewed = select(ReviewRow.completion_id)
    whole = (AnswerRow.status == 200, AnswerRow.prompt.is_not(None), AnswerRow.id.not_in(reviewed))
    query = select(AnswerRow).where(*whole).order_by(func.random()).limit(1)
    if adapter is not None:
        query = query.where(AnswerRow.voice == adapter)
    answer = session.scalar(query)
    if answer is None:
        return None
    queue_for_review(session, answer.id, answer.voice, Reason.RANDOM)  # a thumb may queue it at the same moment
    return session.get_one(ReviewRow, answer.id)


def ask_for_review(session: Session, feedback: FeedbackRow) -> None:
    """Queue the answer if its thumb points down, or if two thumbs disagree."""
    if feedback.key != "thumb" or feedback.target != "completion":
        return
    others = session.scalars(
        select(FeedbackRow.value).where(
            FeedbackRow.target_id == feedback.target_id,
            FeedbackRow.key == "thumb",
            FeedbackRow.annotator != feedback.annotator,
        )
    )
    disagree = any(value != feedback.value for value in others)
    if disagree or feedback.value == "down":
        queue_for_review(
            session, feedback.target_id, feedback.voice, Reason.DISAGREEMENT if disagree else Reason.THUMBS_DOWN
        )


def queue_for_review(session: Session, completion: str, adapter: str, reason: Reason) -> None:
    """Put an answer into the queue; it stays one item if others do so at the same time."""
    values = {"completion_id": completion, "voice": adapter, "reason": reason.value, "state": OPEN, "added_at": now()}
    session.execute(insert_for(session)(ReviewRow).values(**values).on_conflict_do_nothing())


def item_json(item: ReviewItem, feedback: list[dict[str, Any]]) -> dict[str, Any]:
    answer = item.answer
    return {
        "completion_id": answer.id,
        "adapter": answer.voice,
        "version": answer.version,
        "reason": item.review.reason,
        "leased_until": item.until.isoformat(),
        "conversation": answer.conversation,
        "at": answer.at.isoformat(),
        "prompt": answer.prompt,
        "reply": answer.reply,
        "base": answer.base,
        "parameters": answer.parameters,
        "feedback": feedback,
    }
