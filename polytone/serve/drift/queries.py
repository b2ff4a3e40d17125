"""SQL of the drift monitor: the answers and thumbs to observe next, active alarms, and siblings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from polytone.contract.digests import digest_text
from polytone.serve.database.session import Database, insert_for, now, reading, writing
from polytone.serve.database.tables import AnswerRow, DriftAlarmRow, FeedbackRow, ToneSiblingsRow

CONVERSATIONS = 100
VERSIONS = 100
LONGEST = timedelta(days=1)  # a conversation that never ends is observed once a day


@dataclass(frozen=True)
class Thumb:
    """The first thumb of a conversation; `at` in ISO format."""

    version: str
    completion: str
    at: str
    down: bool


def waiting_versions(session: Session, quiet: timedelta) -> list[str]:
    """Versions with something to observe; only some of them where there are very many."""
    ungrouped = select(AnswerRow.version).where(AnswerRow.observed.is_(False), AnswerRow.conversation.is_(None))
    rated = select(FeedbackRow.version).where(unobserved_thumb())
    finished = {version for version, _ in session.execute(finished_conversations(quiet))}
    others = [set(session.scalars(query.distinct().limit(VERSIONS))) for query in (ungrouped, rated)]
    return sorted(finished.union(*others))


def take_answers(session: Session, versions: list[str], quiet: timedelta) -> Iterator[AnswerRow]:
    """One unobserved answer of each finished conversation, and those without a conversation, up to a batch of each.

    All answers of these conversations are marked as observed.
    """
    finished = finished_conversations(quiet).where(AnswerRow.version.in_(versions))
    for version, conversation in session.execute(finished).all():
        answer = draw_answer(session, AnswerRow.version == version, AnswerRow.conversation == conversation)
        if answer is not None:
            yield answer
    yield from take_ungrouped(session, versions)


def finished_conversations(quiet: timedelta) -> Any:
    """Select (version, conversation) of those quiet for `quiet`, and of those that have gone on for too long."""
    quiet_since, long_since = now() - quiet, now() - max(LONGEST, quiet)
    return (
        select(AnswerRow.version, AnswerRow.conversation)
        .where(AnswerRow.observed.is_(False), AnswerRow.conversation.is_not(None))
        .group_by(AnswerRow.version, AnswerRow.conversation)
        .having(or_(func.max(AnswerRow.at) < quiet_since, func.min(AnswerRow.at) < long_since))
        .order_by(func.min(AnswerRow.at))
        .limit(CONVERSATIONS)
    )


def draw_answer(session: Session, *conditions: Any) -> AnswerRow | None:
    """One unobserved answer of a conversation at random: the ids alone decide which. Marks all as observed."""
    unobserved = (AnswerRow.observed.is_(False), *conditions)
    ids = session.scalars(select(AnswerRow.id).where(*unobserved).with_for_update()).all()
    if not ids:
        return None  # another replica was faster
    mark = update(AnswerRow).where(*unobserved).values(observed=True)
    session.execute(mark.execution_options(synchronize_session=False))
    return session.get_one(AnswerRow, min(ids, key=digest_text))


def take_ungrouped(session: Session, versions: list[str]) -> Sequence[AnswerRow]:
    """Unobserved answers without a conversation, up to a batch, marked as observed. Skips another replica's."""
    rows = session.scalars(
        select(AnswerRow)
        .where(AnswerRow.observed.is_(False), AnswerRow.conversation.is_(None), AnswerRow.version.in_(versions))
        .order_by(AnswerRow.at)
        .limit(CONVERSATIONS)
        .with_for_update(skip_locked=True)
    ).all()
    for row in rows:
        row.observed = True
    return rows


def take_thumbs(session: Session, versions: list[str]) -> list[Thumb]:
    """The first thumb of each conversation, up to a batch; later ones are marked as observed too, and left out."""
    rows = session.scalars(
        select(FeedbackRow)
        .where(unobserved_thumb(), FeedbackRow.version.in_(versions))
        .order_by(FeedbackRow.number)
        .limit(CONVERSATIONS)
        .with_for_update(skip_locked=True)
    ).all()
    thumbs = []
    for row in rows:
        if not rated_before(session, row):
            thumbs.append(Thumb(row.version, row.target_id, row.at.isoformat(), row.value == "down"))
        row.observed = True
        session.flush()
    return thumbs


def unobserved_thumb() -> Any:
    return and_(FeedbackRow.observed.is_(False), FeedbackRow.key == "thumb", FeedbackRow.target == "completion")


def rated_before(session: Session, thumb: FeedbackRow) -> bool:
    """True if an earlier thumb of the same conversation was observed: a second one is no second observation."""
    earlier, rated = aliased(AnswerRow), aliased(AnswerRow)
    count = (
        select(func.count())
        .select_from(FeedbackRow)
        .join(earlier, earlier.id == FeedbackRow.target_id)
        .join(rated, rated.id == thumb.target_id)
        .where(
            FeedbackRow.observed.is_(True),
            FeedbackRow.key == "thumb",
            FeedbackRow.version == thumb.version,
            FeedbackRow.id != thumb.id,
            or_(earlier.id == thumb.target_id, earlier.conversation == rated.conversation),
        )
    )
    return bool(session.scalar(count))


def active_alarm(session: Session, version: str, signal: str) -> DriftAlarmRow | None:
    return session.scalar(
        select(DriftAlarmRow).where(
            DriftAlarmRow.version == version,
            DriftAlarmRow.signal == signal,
            DriftAlarmRow.acknowledged_at.is_(None),
        )
    )


def tone_siblings(database: Database, version: str, current: list[str]) -> list[str]:
    """The sibling versions that a version's tone classifier was first learned with; `current` if there are none yet.

    They stay the same, so that the classifier stays the one that the detector's reference was scored with.
    """
    with reading(database) as session:
        row = session.get(ToneSiblingsRow, version)
    if row is None:
        insert = insert_for(session)(ToneSiblingsRow).values(version=version, siblings=current)
        with writing(database) as session:
            session.execute(insert.on_conflict_do_nothing())
            row = session.get_one(ToneSiblingsRow, version)
    return list(row.siblings)
