"""Drift, version by version: reads new answers and thumbs, moves the detectors, raises alarms that stand until someone
acknowledges them.

One observation per conversation: of each, one answer is drawn by chance when it has been quiet for a while. What the
detectors know lies in the database and moves in the same transaction as the mark on the answers it was learned from:
nothing is seen twice or lost, whichever replica goes on, and after whatever restart.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, aliased

from polytone.contract.digests import digest_text
from polytone.contract.errors import NotFoundError
from polytone.contract.version_id import voice_of
from polytone.serve.concurrency import in_thread
from polytone.serve.database import audit
from polytone.serve.database.session import Database, insert_for, now, one_at_a_time, reading, writing
from polytone.serve.database.tables import AnswerRow, DriftAlarmRow, DriftRow, FeedbackRow
from polytone.serve.metrics import Metrics
from polytone.serve.traffic.reviews import Reason, queue_for_review

from .baseline import Baseline, Baselines
from .detectors import (
    PROMPTS,
    REPLIES,
    THUMBS_DOWN,
    Detector,
    DriftStatus,
    ScalarDetector,
    VectorDetector,
    detector_from_json,
)
from .embedding import DIMENSION
from .report import describe_change
from .sequential import expected_chance_alarms

log = logging.getLogger(__name__)

TICK_SECONDS = 2.0
CONVERSATIONS = 100
VERSIONS = 100
LONGEST = timedelta(days=1)  # a conversation that never ends is observed once a day
VECTOR_BYTES = 2 * DIMENSION * np.dtype(np.float16).itemsize
DRIFT = "drift"  # moved by one replica at a time: of a detector that is new there is no row to lock
SIBLINGS = "siblings"  # a row of its own: the tone classifier stays the one the detector's reference was made with


@dataclass
class VersionBatch:
    """The watches of one version while a batch is worked on."""

    version: str
    baseline: Baseline
    detectors: dict[str, Detector]
    observations: float = 0.0
    changed: set[str] = field(default_factory=set)


class DriftMonitor:
    """Methods block, but for `run`."""

    def __init__(
        self, database: Database, baselines: Baselines, metrics: Metrics, run_length: float, quiet_seconds: float
    ) -> None:
        self._database = database
        self._baselines = baselines
        self._metrics = metrics
        self._run_length = run_length
        self._quiet = timedelta(seconds=quiet_seconds)

    async def run(self) -> None:
        """Work through new answers until cancelled."""
        with contextlib.suppress(SQLAlchemyError):
            await in_thread(self.show_all)
        pause = TICK_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = TICK_SECONDS
            try:
                pause = 0 if await in_thread(self.tick) else TICK_SECONDS
            except SQLAlchemyError as error:
                log.error("drift waits for the database: %s", type(error).__name__)
            except Exception:
                log.exception("drift could not be worked on; trying again")

    def tick(self) -> int:
        """Work on the conversations that have become quiet, up to a batch; returns how many."""
        with reading(self._database) as session:  # a look that takes no lock
            versions = self._waiting_versions(session)
        for version in versions:  # a profile takes its time, and may write itself
            self._baselines.of(version)
        if not versions:
            return 0
        with writing(self._database) as session:
            one_at_a_time(session, DRIFT)
            rows = list(self._conversations(session, versions))
            thumbs = new_thumbs(session, versions)
            batches: dict[str, VersionBatch] = {}
            for row in rows:
                self._observe(self._batch(session, batches, row.version), row)
            for version, completion, at, down in thumbs:
                self._observe_thumb(self._batch(session, batches, version), completion, at, down)
            for batch in batches.values():
                self._close(session, batch)
        return len(rows) + len(thumbs)

    def show_all(self) -> None:
        """Set the gauges to what the detectors knew when the last server stopped."""
        with reading(self._database) as session:
            for row in session.scalars(select(DriftRow).where(DriftRow.signal != SIBLINGS)):
                if (detector := detector_from_json(row.state)) is not None:
                    self._show(row.version, detector)

    def acknowledge(self, version: str, signal: str, actor: str) -> dict[str, Any]:
        """End an alarm; its detector starts anew against the same reference.

        Raises:
            NotFoundError: `alarm_not_found` where none stands.
        """
        with writing(self._database) as session:
            one_at_a_time(session, DRIFT)
            alarm = active_alarm(session, version, signal)
            if alarm is None:
                raise NotFoundError(f"No alarm stands for {signal} of {version}.", code="alarm_not_found")
            alarm.acknowledged_at, alarm.acknowledged_by = now(), actor[:120]
            row = session.get(DriftRow, (version, signal), with_for_update=True)
            if row is not None and (detector := detector_from_json(row.state)) is not None:
                detector.restart()
                row.state, row.at = detector.to_json(), now()
                self._show(version, detector)
            audit.record(session, actor, "acknowledge", f"{version} {signal}", None, alarm.details.get("words"))
            return {"version": version, "signal": signal, "acknowledged_by": alarm.acknowledged_by}

    def _conversations(self, session: Session, versions: list[str]) -> Iterable[AnswerRow]:
        """One unseen answer of each conversation that is over; all of the conversation's are marked as seen."""
        for version, conversation in session.execute(self._over(versions)).all():
            of = (AnswerRow.version == version, AnswerRow.conversation == conversation)
            if drawn_row := draw(session, *of):
                yield drawn_row
        yield from take(session, AnswerRow.conversation.is_(None), AnswerRow.version.in_(versions))

    def _over(self, versions: list[str] | None = None) -> Any:
        """Versions and conversations that have been quiet for a while, or have gone on for too long to wait."""
        quiet, long = now() - self._quiet, now() - max(LONGEST, self._quiet)
        wanted = (
            select(AnswerRow.version, AnswerRow.conversation)
            .where(AnswerRow.observed.is_(False), AnswerRow.conversation.is_not(None))
            .group_by(AnswerRow.version, AnswerRow.conversation)
            .having(or_(func.max(AnswerRow.at) < quiet, func.min(AnswerRow.at) < long))
            .order_by(func.min(AnswerRow.at))
            .limit(CONVERSATIONS)
        )
        return wanted if versions is None else wanted.where(AnswerRow.version.in_(versions))

    def _waiting_versions(self, session: Session) -> list[str]:
        """Versions with something to observe, some of them where they are many."""
        alone = select(AnswerRow.version).where(AnswerRow.observed.is_(False), AnswerRow.conversation.is_(None))
        thumbs = select(FeedbackRow.version).where(unseen_thumb())
        over = {version for version, _ in session.execute(self._over())}
        found = [set(session.scalars(one.distinct().limit(VERSIONS))) for one in (alone, thumbs)]
        return sorted(over.union(*found))

    def _batch(self, session: Session, batches: dict[str, VersionBatch], version: str) -> VersionBatch:
        if version not in batches:
            found = session.scalars(select(DriftRow).where(DriftRow.version == version).with_for_update())
            read = {row.signal: detector_from_json(row.state) for row in found if row.signal != SIBLINGS}
            detectors = {signal: detector for signal, detector in read.items() if detector is not None}
            batches[version] = VersionBatch(version, self._baselines.of(version), detectors)
        return batches[version]

    def _observe(self, batch: VersionBatch, row: AnswerRow) -> None:
        at = row.at.isoformat()
        for signal, value in (row.signals or {}).items():
            self._scalar(batch, signal).observe(value, row.id, at)
        if row.vectors and len(row.vectors) == VECTOR_BYTES:  # another version of Polytone had shorter ones
            pair = np.frombuffer(row.vectors, dtype=np.float16).reshape(2, DIMENSION)
            for signal, vector in zip((PROMPTS, REPLIES), pair, strict=True):
                self._vector(batch, signal).observe(vector, row.id, at)

    def _observe_thumb(self, batch: VersionBatch, completion: str, at: str, down: bool) -> None:
        self._scalar(batch, THUMBS_DOWN).observe(float(down), completion, at)

    def _scalar(self, batch: VersionBatch, signal: str) -> ScalarDetector:
        if signal not in batch.detectors:
            reference = batch.baseline.values.get(signal)
            batch.detectors[signal] = ScalarDetector.fresh(signal, self._run_length, reference)
        return self._using(batch, signal)  # type: ignore[return-value]

    def _vector(self, batch: VersionBatch, signal: str) -> VectorDetector:
        if signal not in batch.detectors:
            batch.detectors[signal] = VectorDetector.fresh(signal, self._run_length)
        return self._using(batch, signal)  # type: ignore[return-value]

    def _using(self, batch: VersionBatch, signal: str) -> Detector:
        detector = batch.detectors[signal]
        batch.changed.add(signal)
        if detector.status() is not DriftStatus.WARMING_UP:
            batch.observations += 1
        return detector

    def _close(self, session: Session, batch: VersionBatch) -> None:
        """Store what the detectors know now, and raise the alarms they call for."""
        for signal in sorted(batch.changed):
            detector = batch.detectors[signal]
            session.merge(DriftRow(version=batch.version, signal=signal, state=detector.to_json(), at=now()))
            self._show(batch.version, detector)
            if detector.since is not None and active_alarm(session, batch.version, signal) is None:
                self._alarm(session, batch, detector)
        self._metrics.drift_expected_false_alarms_total.labels(*labels(batch.version)).inc(
            expected_chance_alarms(batch.observations, self._run_length)
        )

    def _show(self, version: str, detector: Detector) -> None:
        of = (*labels(version), detector.signal)
        self._metrics.drift_state.labels(*of).set(list(DriftStatus).index(detector.status()))
        self._metrics.drift_statistic.labels(*of).set(detector.statistic)
        self._metrics.drift_alarms_total.labels(*of)  # a count that begins at 1 is no increase to Prometheus

    def _alarm(self, session: Session, batch: VersionBatch, detector: Detector) -> None:
        examples = detector.examples()
        details = {
            **describe_change(detector),
            "examples": examples,
            "observations": detector.seen.count,
            "run_length": detector.run_length,
        }
        session.add(DriftAlarmRow(version=batch.version, signal=detector.signal, at=now(), details=details))
        for completion in examples:
            queue_for_review(session, completion, voice_of(batch.version), Reason.DRIFT)
        self._metrics.drift_alarms_total.labels(*labels(batch.version), detector.signal).inc()
        log.warning("%s: %s", batch.version, details["words"])


def unseen_thumb() -> Any:
    return and_(FeedbackRow.observed.is_(False), FeedbackRow.key == "thumb", FeedbackRow.target == "completion")


def take(session: Session, *of: Any) -> Sequence[AnswerRow]:
    """Unseen answers, up to a batch, marked as seen; another replica's are passed over."""
    rows = session.scalars(
        select(AnswerRow)
        .where(AnswerRow.observed.is_(False), *of)
        .order_by(AnswerRow.at)
        .limit(CONVERSATIONS)
        .with_for_update(skip_locked=True)
    ).all()
    for row in rows:
        row.observed = True
    return rows


def draw(session: Session, *of: Any) -> AnswerRow | None:
    """One unseen answer of a conversation, by chance: which one depends on the ids alone. All are marked as seen."""
    unseen = (AnswerRow.observed.is_(False), *of)
    ids = session.scalars(select(AnswerRow.id).where(*unseen).with_for_update()).all()
    if not ids:
        return None  # another replica was faster
    session.execute(update(AnswerRow).where(*unseen).values(observed=True).execution_options(synchronize_session=False))
    return session.get_one(AnswerRow, min(ids, key=digest_text))


def new_thumbs(session: Session, versions: list[str]) -> list[tuple[str, str, str, bool]]:
    """(version, completion, time, down) of the first thumb in each conversation; all are marked as seen."""
    rows = session.scalars(
        select(FeedbackRow)
        .where(unseen_thumb(), FeedbackRow.version.in_(versions))
        .order_by(FeedbackRow.number)
        .limit(CONVERSATIONS)
        .with_for_update(skip_locked=True)
    ).all()
    found = []
    for row in rows:
        if not rated_before(session, row):
            found.append((row.version, row.target_id, row.at.isoformat(), row.value == "down"))
        row.observed = True
        session.flush()
    return found


def rated_before(session: Session, thumb: FeedbackRow) -> bool:
    """Whether its conversation had a thumb before: a second one is no second observation."""
    answer, mine = aliased(AnswerRow), aliased(AnswerRow)
    same = or_(answer.id == thumb.target_id, answer.conversation == mine.conversation)
    return bool(
        session.scalar(
            select(func.count())
            .select_from(FeedbackRow)
            .join(answer, answer.id == FeedbackRow.target_id)
            .join(mine, mine.id == thumb.target_id)
            .where(
                FeedbackRow.observed.is_(True),
                FeedbackRow.key == "thumb",
                FeedbackRow.version == thumb.version,
                FeedbackRow.id != thumb.id,
                same,
            )
        )
    )


def active_alarm(session: Session, version: str, signal: str) -> DriftAlarmRow | None:
    return session.scalar(
        select(DriftAlarmRow).where(
            DriftAlarmRow.version == version,
            DriftAlarmRow.signal == signal,
            DriftAlarmRow.acknowledged_at.is_(None),
        )
    )


def labels(version: str) -> tuple[str, str]:
    return voice_of(version), version


def frozen_siblings(database: Database, version: str, now_there: list[str]) -> list[str]:
    """The siblings that a version's tone was first told from; `now_there` where there are none yet."""
    with reading(database) as session:
        row = session.get(DriftRow, (version, SIBLINGS))
    if row is None:
        values = {"version": version, "signal": SIBLINGS, "state": {"versions": now_there}, "at": now()}
        with writing(database) as session:
            session.execute(insert_for(session)(DriftRow).values(**values).on_conflict_do_nothing())
            row = session.get_one(DriftRow, (version, SIBLINGS))
    return list(row.state["versions"])
