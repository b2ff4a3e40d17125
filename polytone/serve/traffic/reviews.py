"""The review queue: answers that someone should look at, leased one at a time, so that two do not do the same work."""

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
    """Why an answer is in the queue, the most pressing first."""

    THUMBS_DOWN = "thumbs_down"
    DISAGREEMENT = "disagreement"
    DRIFT = "drift"
    RANDOM = "random"


class Decision(StrEnum):
    """Good as it is; good as it was edited; of no use."""

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
        """The most pressing item that nobody else holds, or an answer drawn by chance where none waits; None where
        there is none at all. The item that the reviewer holds already comes first."""
        with writing(self._database) as session:
            one_at_a_time(session, "reviews")
            row = waiting(session, reviewer, adapter) or drawn_by_chance(session, adapter)
            if row is None:
                return None
            row.leased_by, row.leased_until = reviewer, now() + timedelta(seconds=seconds)
            answer = session.get_one(AnswerRow, row.completion_id)
            said = session.scalars(
                select(FeedbackRow).where(FeedbackRow.target_id == row.completion_id).order_by(FeedbackRow.number)
            )
            return ReviewItem(row, answer, tuple(said), row.leased_until)

    def decide(
        self, completion: str, decision: Decision, reviewer: str, correction: FeedbackRow | None = None
    ) -> ReviewRow:
        """Close an item, and add the correction that an edit is, in one.

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
        """(state, reason) -> how many."""
        with reading(self._database) as session:
            wanted = select(ReviewRow.state, ReviewRow.reason, func.count()).group_by(ReviewRow.state, ReviewRow.reason)
            return {(state, reason): count for state, reason, count in session.execute(wanted)}


def decidable(session: Session, completion: str, reviewer: str) -> ReviewRow:
    row = session.get(ReviewRow, completion, with_for_update=True)
    if row is None:
        raise NotFoundError(f"{completion} does not wait for review.", code="review_not_found")
    if row.state != OPEN:
        raise ConflictError(f"{completion} was {row.state} by {row.decided_by}.", code="review_decided")
    held = row.leased_until is not None and row.leased_until > now()
    if held and row.leased_by != reviewer:
        raise ConflictError(f"{completion} is in the hands of {row.leased_by}.", code="review_leased")
    return row


def waiting(session: Session, reviewer: str, adapter: str | None) -> ReviewRow | None:
    urgency = case({reason.value: rank for rank, reason in enumerate(Reason)}, value=ReviewRow.reason, else_=9)
    mine = case((ReviewRow.leased_by == reviewer, 0), else_=1)
    free = or_(ReviewRow.leased_until.is_(None), ReviewRow.leased_until < now(), ReviewRow.leased_by == reviewer)
    written = ReviewRow.completion_id.in_(select(AnswerRow.id))  # feedback may come before the answer's row
    wanted = (
        select(ReviewRow)
        .where(ReviewRow.state == OPEN, free, written)
        .order_by(mine, urgency, ReviewRow.added_at)
        .limit(1)
    )
    if adapter is not None:
        wanted = wanted.where(ReviewRow.voice == adapter)
    return session.scalar(wanted.with_for_update(skip_locked=True))


def drawn_by_chance(session: Session, adapter: str | None) -> ReviewRow | None:
    """A new item of an answer that nobody asked a review of."""
    reviewed = select(ReviewRow.completion_id)
    whole = (AnswerRow.status == 200, AnswerRow.prompt.is_not(None), AnswerRow.id.not_in(reviewed))
    wanted = select(AnswerRow).where(*whole).order_by(func.random()).limit(1)
    if adapter is not None:
        wanted = wanted.where(AnswerRow.voice == adapter)
    answer = session.scalar(wanted)
    if answer is None:
        return None
    queue_for_review(session, answer.id, answer.voice, Reason.RANDOM)  # or a thumb does so at this moment
    return session.get_one(ReviewRow, answer.id)


def ask_for_review(session: Session, given: FeedbackRow) -> None:
    """A thumb down puts the answer into the queue, and so do two thumbs that say opposite things."""
    if given.key != "thumb" or given.target != "completion":
        return
    others = session.scalars(
        select(FeedbackRow.value).where(
            FeedbackRow.target_id == given.target_id,
            FeedbackRow.key == "thumb",
            FeedbackRow.annotator != given.annotator,
        )
    )
    disagree = any(value != given.value for value in others)
    if disagree or given.value == "down":
        queue_for_review(session, given.target_id, given.voice, Reason.DISAGREEMENT if disagree else Reason.THUMBS_DOWN)


def queue_for_review(session: Session, completion: str, adapter: str, reason: Reason) -> None:
    """Put an answer into the queue once, whoever else does it at the same time."""
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
        "feedback": feedback,
    }
