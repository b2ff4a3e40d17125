"""Drift, version by version: new answers and thumbs go to the detectors, and an alarm stays active until acknowledged.

A conversation is one observation: once it has been quiet for a while, one of its answers is drawn at random. The state
of the detectors is stored in the transaction that marks these answers as observed. So none is observed twice or lost,
whichever replica continues and after any restart.
"""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from polytone.contract.errors import NotFoundError
from polytone.contract.version_id import voice_of
from polytone.serve.concurrency import in_thread
from polytone.serve.database import audit
from polytone.serve.database.session import Database, now, one_at_a_time, reading, writing
from polytone.serve.database.tables import AnswerRow, DriftAlarmRow, DriftRow
from polytone.serve.metrics import Metrics
from polytone.serve.traffic.reviews import Reason, queue_for_review

from .baseline import Baseline, Baselines
from .detectors import (
    NEEDS_REFERENCE,
    PROMPTS,
    REPLIES,
    SILENT,
    THUMBS_DOWN,
    Detector,
    DriftStatus,
    ScalarDetector,
    VectorDetector,
    detector_from_json,
)
from .embedding import DIMENSION
from .queries import Thumb, active_alarm, take_answers, take_thumbs, waiting_versions
from .report import describe_change
from .sequential import expected_chance_alarms

log = logging.getLogger(__name__)

TICK_SECONDS = 2.0
VECTOR_BYTES = 2 * DIMENSION * np.dtype(np.float16).itemsize
DRIFT = "drift"  # one replica at a time updates detectors: a new detector has no row that could be locked


@dataclass
class VersionBatch:
    """The detectors of one version while a batch of its answers is worked through.

    `observations` counts those that could have raised an alarm.
    """

    version: str
    baseline: Baseline
    run_length: float
    detectors: dict[str, Detector]
    observations: int = 0
    changed: set[str] = field(default_factory=set)

    def observe_answer(self, row: AnswerRow) -> None:
        at = row.at.isoformat()
        for signal, value in (row.signals or {}).items():
            self._observe(self._scalar(signal), value, row.id, at)
        for signal in NEEDS_REFERENCE - self.baseline.values.keys() - self.detectors.keys():
            self._scalar(signal)  # only to say that it has no reference
        if row.vectors and len(row.vectors) == VECTOR_BYTES:  # an older Polytone had shorter ones
            pair = np.frombuffer(row.vectors, dtype=np.float16).reshape(2, DIMENSION)
            for signal, vector in zip((PROMPTS, REPLIES), pair, strict=True):
                self._observe(self._vector(signal), vector, row.id, at)

    def observe_thumb(self, thumb: Thumb) -> None:
        self._observe(self._scalar(THUMBS_DOWN), float(thumb.down), thumb.completion, thumb.at)

    def _observe(self, detector: Detector, value: Any, completion: str, at: str) -> None:
        self.observations += detector.status() not in SILENT
        detector.observe(value, completion, at)

    def _scalar(self, signal: str) -> ScalarDetector:
        self.changed.add(signal)
        detector = self.detectors.get(signal)
        if not isinstance(detector, ScalarDetector) or detector.status() is DriftStatus.NO_REFERENCE:
            detector = ScalarDetector.fresh(signal, self.run_length, self.baseline.values.get(signal))
            self.detectors[signal] = detector
        return detector

    def _vector(self, signal: str) -> VectorDetector:
        self.changed.add(signal)
        detector = self.detectors.get(signal)
        if not isinstance(detector, VectorDetector):
            detector = self.detectors[signal] = VectorDetector.fresh(signal, self.run_length)
        return detector


class DriftMonitor:
    """Runs the detectors of all versions. Methods block, except `run`."""

    def __init__(
        self, database: Database, baselines: Baselines, metrics: Metrics, run_length: float, quiet_seconds: float
    ) -> None:
        self._database = database
        self._baselines = baselines
        self._metrics = metrics
        self._run_length = run_length
        self._quiet = timedelta(seconds=quiet_seconds)

    async def run(self) -> None:
        """Observe new answers until cancelled."""
        with contextlib.suppress(SQLAlchemyError):
            await in_thread(self.show_all)
        pause = TICK_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = TICK_SECONDS
            try:
                pause = 0 if await in_thread(self.tick) else TICK_SECONDS
            except SQLAlchemyError as error:
                log.error("drift is waiting for the database: %s", type(error).__name__)
            except Exception:
                log.exception("drift could not be updated; trying again")

    def tick(self) -> int:
        """Observe one batch of finished conversations and thumbs; returns how many."""
        with reading(self._database) as session:  # takes no lock
            versions = waiting_versions(session, self._quiet)
        for version in versions:  # making a baseline takes a second, and writes to the database itself
            self._baselines.of(version)
        if not versions:
            return 0
        with writing(self._database) as session:
            one_at_a_time(session, DRIFT)
            answers = list(take_answers(session, versions, self._quiet))
            thumbs = take_thumbs(session, versions)
            touched = {answer.version for answer in answers} | {thumb.version for thumb in thumbs}
            batches = {version: self._open(session, version) for version in sorted(touched)}
            for answer in answers:
                batches[answer.version].observe_answer(answer)
            for thumb in thumbs:
                batches[thumb.version].observe_thumb(thumb)
            for batch in batches.values():
                self._close(session, batch)
        return len(answers) + len(thumbs)

    def show_all(self) -> None:
        """Set the gauges to the stored state of all detectors."""
        with reading(self._database) as session:
            for row in session.scalars(select(DriftRow)):
                if (detector := detector_from_json(row.state)) is not None:
                    self._show(row.version, detector)

    def acknowledge(self, version: str, signal: str, actor: str) -> dict[str, Any]:
        """End an alarm; its detector starts again with the same reference.

        Raises:
            NotFoundError: `alarm_not_found` if there is no active alarm.
        """
        with writing(self._database) as session:
            one_at_a_time(session, DRIFT)
            alarm = active_alarm(session, version, signal)
            if alarm is None:
                raise NotFoundError(f"There is no active alarm on {signal} of {version}.", code="alarm_not_found")
            alarm.acknowledged_at, alarm.acknowledged_by = now(), actor[:120]
            row = session.get(DriftRow, (version, signal), with_for_update=True)
            if row is not None and (detector := detector_from_json(row.state)) is not None:
                detector.restart()
                row.state, row.at = detector.to_json(), now()
                self._show(version, detector)
            audit.record(session, actor, "acknowledge", f"{version} {signal}", None, alarm.details.get("words"))
            return {"version": version, "signal": signal, "acknowledged_by": alarm.acknowledged_by}

    def _open(self, session: Session, version: str) -> VersionBatch:
        """The version's detectors as they were stored; one that cannot be read starts again."""
        rows = session.scalars(select(DriftRow).where(DriftRow.version == version).with_for_update())
        stored = {row.signal: detector_from_json(row.state) for row in rows}
        detectors = {signal: detector for signal, detector in stored.items() if detector is not None}
        return VersionBatch(version, self._baselines.of(version), self._run_length, detectors)

    def _close(self, session: Session, batch: VersionBatch) -> None:
        """Store the detectors' new state, and raise their alarms."""
        for signal in sorted(batch.changed):
            detector = batch.detectors[signal]
            session.merge(DriftRow(version=batch.version, signal=signal, state=detector.to_json(), at=now()))
            self._show(batch.version, detector)
            if detector.since is not None and active_alarm(session, batch.version, signal) is None:
                self._raise_alarm(session, batch.version, detector)
        expected = expected_chance_alarms(batch.observations, self._run_length)
        self._metrics.drift_expected_false_alarms_total.labels(*labels(batch.version)).inc(expected)

    def _show(self, version: str, detector: Detector) -> None:
        names = (*labels(version), detector.signal)
        self._metrics.drift_state.labels(*names).set(list(DriftStatus).index(detector.status()))
        self._metrics.drift_statistic.labels(*names).set(detector.statistic)
        self._metrics.drift_alarms_total.labels(*names)  # Prometheus sees no increase in a count that begins at 1

    def _raise_alarm(self, session: Session, version: str, detector: Detector) -> None:
        examples = detector.examples()
        details = {
            **describe_change(detector),
            "examples": examples,
            "observations": detector.seen.count,
            "run_length": detector.run_length,
        }
        session.add(DriftAlarmRow(version=version, signal=detector.signal, at=now(), details=details))
        for completion in examples:
            queue_for_review(session, completion, labels(version)[0], Reason.DRIFT)
        self._metrics.drift_alarms_total.labels(*labels(version), detector.signal).inc()
        log.warning("%s: %s", version, details["words"])


def labels(version: str) -> tuple[str, str]:
    return voice_of(version), version
