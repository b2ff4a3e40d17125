"""Finding and deleting recorded answers, with the feedback on them and their place in the review queue."""

from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from polytone.contract.digests import digest_text
from polytone.contract.errors import InputError
from polytone.serve.database import audit
from polytone.serve.database.session import Database, reading, writing
from polytone.serve.database.tables import AnswerRow, FeedbackRow, ReviewRow, TurnRow

from .conversations import delete_conversation
from .text_hash import TextHasher, text_hasher


def forget_conversation(database: Database, conversation: str, actor: str) -> int:
    """Delete every answer of a conversation, and what a tester kept of it; returns how many answers. Blocks.

    The audit log records who did it and the number of answers, and not the name of the conversation.
    """
    with writing(database) as session:
        count = delete_whole_conversation(session, conversation)
        audit.record(session, actor, "forget", "conversation", None, {"answers": count})
    return count


def find_text(database: Database, text: str) -> list[AnswerRow]:
    """The answers to `text` as the user's last message, and those that reply it, the oldest first. Blocks.

    Answers under the content policy `none` cannot be found.

    Raises:
        InputError: `invalid_request` for an empty text.
    """
    hasher = text_hasher(database)
    with reading(database) as session:
        return answers_with(session, hasher, text)


def forget_text(database: Database, text: str, actor: str) -> int:
    """Delete the answers that `find_text` finds, and the whole conversations that the text was said in. Blocks.

    Later turns repeat the text as their history, so their answers go, too, and so does what a tester kept of these
    conversations. Returns how many answers were deleted. The audit log records this number and not the text.

    Raises:
        InputError: `invalid_request` for an empty text.
    """
    hasher = text_hasher(database)
    with writing(database) as session:
        answers = answers_with(session, hasher, text)
        kept = session.scalars(select(TurnRow.conversation).where(func.trim(TurnRow.content) == text.strip()))
        conversations = {row.conversation for row in answers if row.conversation} | set(kept)
        count = sum(delete_whole_conversation(session, conversation) for conversation in sorted(conversations))
        count += delete_answers(session, AnswerRow.id.in_([row.id for row in answers]))
        audit.record(session, actor, "forget", "text", None, {"answers": count})
    return count


def answers_with(session: Session, hasher: TextHasher, text: str) -> list[AnswerRow]:
    if not text.strip():
        raise InputError("text: is empty. Send the text to look for.", code="invalid_request", param="text")
    key = hasher.hash(text)
    query = select(AnswerRow).where(or_(AnswerRow.prompt_sha256 == key, AnswerRow.reply_sha256 == key))
    return list(session.scalars(query.order_by(AnswerRow.at)))


def answer_json(row: AnswerRow) -> dict[str, Any]:
    return {
        "completion_id": row.id,
        "version": row.version,
        "conversation": row.conversation,
        "at": row.at.isoformat(),
    }


def delete_whole_conversation(session: Session, conversation: str) -> int:
    """Delete a conversation's answers, feedback and kept turns; returns how many answers."""
    names = (conversation, digest_text(conversation))
    session.execute(delete(FeedbackRow).where(FeedbackRow.target_id.in_(names)))
    count = delete_answers(session, AnswerRow.conversation.in_(names))
    delete_conversation(session, conversation)
    return count


def delete_before(database: Database, moment: datetime) -> int:
    """Delete all answers from before `moment`; returns how many. Blocks."""
    with writing(database) as session:
        of_conversations = (FeedbackRow.target == "conversation", FeedbackRow.at < moment)
        session.execute(delete(FeedbackRow).where(*of_conversations))
        return delete_answers(session, AnswerRow.at < moment)


def delete_answers(session: Session, condition: Any) -> int:
    """Delete answers with their feedback and reviews; returns how many answers."""
    ids = select(AnswerRow.id).where(condition).scalar_subquery()
    feedback = delete(FeedbackRow).where(or_(FeedbackRow.target_id.in_(ids), FeedbackRow.other_id.in_(ids)))
    reviews = delete(ReviewRow).where(ReviewRow.completion_id.in_(ids))
    for statement in (feedback, reviews):
        session.execute(statement.execution_options(synchronize_session=False))
    deleted = session.execute(delete(AnswerRow).where(condition).execution_options(synchronize_session=False))
    return int(getattr(deleted, "rowcount", 0))
