"""Every answer leaves a row, written off the request path: the request only puts a record into a bounded queue."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, or_, select
from sqlalchemy.exc import InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from polytone.contract.digests import digest_text
from polytone.serve.concurrency import in_thread, working
from polytone.serve.database import audit
from polytone.serve.database.session import Database, insert_for, now, reading, writing
from polytone.serve.database.tables import AnswerRow, FeedbackRow, ReviewRow
from polytone.serve.metrics import Metrics

from .capture import CompletionRef, Measure, Policies, RecordedAnswer, name_kept, row_of
from .conversations import delete_conversation

log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.2
RETRY_SECONDS = 2.0
CLEANING_SECONDS = 3600.0
BATCH = 500
MOST_BYTES = 256 << 20
# Not the answers' fault: the database is away, or takes nothing now, or all its connections are in use.
OUTAGES = (OperationalError, InternalError, PoolTimeoutError)


class TrafficRecorder:
    """The queue and its writer. `note` and `begin` are for the event loop; they neither wait nor parse."""

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        policies: Policies,
        measure: Measure | None = None,
        capacity: int = 10_000,
        keep_days: float | None = None,
        recording: bool = True,
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._policies = policies
        self._measure = measure
        self._capacity = capacity
        self._keep_days = keep_days
        self._recording = recording
        self._queue: deque[RecordedAnswer] = deque()
        self._queued_bytes = 0
        self._flushing = asyncio.Lock()
        self._pending: dict[str, CompletionRef] = {}
        self._cleaned = 0.0

    def expect(self, completion: str, known: CompletionRef) -> None:
        """A completion id was given out: feedback on it is welcome from now on."""
        if self._recording:
            self._pending[completion] = known

    def enqueue(self, answer: RecordedAnswer) -> None:
        """Queue an answer for its row; where the queue is full it is dropped and counted."""
        if not self._recording:
            return
        if len(self._queue) >= self._capacity or self._queued_bytes + answer.bytes > MOST_BYTES:
            self._metrics.traffic_dropped_total.inc()
            self._pending.pop(answer.id, None)
            return
        self._queue.append(answer)
        self._queued_bytes += answer.bytes

    def find_completion(self, completion: str) -> CompletionRef | None:
        """Whose answer that is, from memory first; blocks."""
        pending = self._pending.get(completion)
        if pending is not None:
            return pending
        with reading(self._database) as session:
            row = session.get(AnswerRow, completion)
            return CompletionRef(row.voice, row.version, row.conversation) if row is not None else None

    def find_conversation(self, name: str, adapters: frozenset[str] | None = None) -> CompletionRef | None:
        """Whose answers a conversation has, the last one's of `adapters` (None: all), with its name as it is kept;
        blocks."""
        for known in reversed(list(self._pending.values())):
            if known.conversation == name and (adapters is None or known.adapter in adapters):
                return replace(known, conversation=name_kept(name, self._policies.for_voice(known.adapter)))
        with reading(self._database) as session:
            wanted = select(AnswerRow).where(AnswerRow.conversation.in_((name, digest_text(name))))
            if adapters is not None:
                wanted = wanted.where(AnswerRow.voice.in_(adapters))
            row = session.scalar(wanted.order_by(AnswerRow.at.desc()).limit(1))
            return CompletionRef(row.voice, row.version, row.conversation) if row is not None else None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write while the block runs, and the rest after it."""
        try:
            async with working(self.run()):
                yield
        finally:
            await self.close()

    async def run(self) -> None:
        """Write what is queued, again and again, until cancelled. An outage of the database only delays it."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await self.flush()
                await self._clean()
            except OUTAGES as error:
                log.error("answers wait to be written, %d of them: %s", len(self._queue), type(error).__name__)
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                log.exception("writing answers failed; trying again")
                await asyncio.sleep(RETRY_SECONDS)

    async def flush(self) -> None:
        """Write everything queued so far."""
        async with self._flushing:
            for _ in range(-(-len(self._queue) // BATCH)):
                batch = [self._queue[i] for i in range(min(BATCH, len(self._queue)))]
                await in_thread(self._write, batch)
                for answer in batch:
                    self._queue.popleft()
                    self._queued_bytes -= answer.bytes
                    self._pending.pop(answer.id, None)

    async def close(self) -> None:
        """Write the rest; what cannot be written now is lost, and said to be."""
        try:
            await self.flush()
        except SQLAlchemyError:
            log.error("%d answers could not be written and are lost", len(self._queue))
            self._metrics.traffic_dropped_total.inc(len(self._queue))

    def delete_before(self, moment: datetime) -> int:
        """Delete all answers from before `moment` with what was said of them; returns how many. Blocks."""
        with writing(self._database) as session:
            of_conversations = FeedbackRow.target == "conversation"
            session.execute(delete(FeedbackRow).where(of_conversations, FeedbackRow.at < moment))
            return delete_answers(session, AnswerRow.at < moment)

    def forget(self, conversation: str, actor: str) -> int:
        """Delete every answer of a conversation, what was said of it, what waits for review and what a tester kept.
        Blocks.

        The audit log keeps who did it and how many answers it were; the conversation's name is forgotten too.
        """
        named = (conversation, digest_text(conversation))
        with writing(self._database) as session:
            session.execute(delete(FeedbackRow).where(FeedbackRow.target_id.in_(named)))
            gone = delete_answers(session, AnswerRow.conversation.in_(named))
            delete_conversation(session, conversation)
            audit.record(session, actor, "forget", "conversation", None, {"answers": gone})
        return gone

    def _write(self, batch: list[RecordedAnswer]) -> None:
        """All at once; if the database takes offence at one, each for itself, and that one is dropped."""
        try:
            policies = (self._policies.for_voice(answer.ref.adapter) for answer in batch)
            self._insert([row_of(*one, self._measure) for one in zip(batch, policies, strict=True)])
        except OUTAGES:
            raise
        except Exception:
            if len(batch) == 1:
                log.exception("%s cannot be written and is dropped", batch[0].id)
                self._metrics.traffic_dropped_total.inc()
                return
            for answer in batch:
                self._write([answer])

    def _insert(self, rows: list[dict[str, Any]]) -> None:
        with writing(self._database) as session:  # one that was written before an error came back is written once
            session.execute(insert_for(session)(AnswerRow).on_conflict_do_nothing(), rows)

    async def _clean(self) -> None:
        if self._keep_days is None or time.monotonic() - self._cleaned < CLEANING_SECONDS:
            return
        self._cleaned = time.monotonic()
        gone = await in_thread(self.delete_before, now() - timedelta(days=self._keep_days))
        if gone:
            log.info("%d answers were older than %g days and are deleted", gone, self._keep_days)


def delete_answers(session: Session, which: Any) -> int:
    """Delete answers with what was said of them and what waits for review; returns how many answers."""
    ids = select(AnswerRow.id).where(which).scalar_subquery()
    said = or_(FeedbackRow.target_id.in_(ids), FeedbackRow.other_id.in_(ids))
    for wanted in (delete(FeedbackRow).where(said), delete(ReviewRow).where(ReviewRow.completion_id.in_(ids))):
        session.execute(wanted.execution_options(synchronize_session=False))
    done = session.execute(delete(AnswerRow).where(which).execution_options(synchronize_session=False))
    return int(getattr(done, "rowcount", 0))
