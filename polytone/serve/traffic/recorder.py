"""Recording of answers, off the request path: a request only puts its answer into a bounded queue."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from polytone.contract.digests import digest_text
from polytone.serve.concurrency import in_thread, working
from polytone.serve.database.session import Database, insert_for, now, reading, writing
from polytone.serve.database.tables import AnswerRow
from polytone.serve.metrics import Metrics

from .capture import CompletionRef, Measure, RecordedAnswer, row_of
from .content_policy import Policies, stored_name
from .forget import delete_before
from .text_hash import text_hasher

log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.2
RETRY_SECONDS = 2.0
CLEANING_SECONDS = 3600.0
BATCH = 500
MOST_BYTES = 256 << 20
# These say nothing about the answers: the database cannot be reached, accepts no writes, or has no free connection.
OUTAGES = (OperationalError, InternalError, PoolTimeoutError)


class TrafficRecorder:
    """The queue of answers and its writer. `expect` and `enqueue` never wait or parse."""

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
        self._hasher = text_hasher(database)
        self._measure = measure
        self._capacity = capacity
        self._keep_days = keep_days
        self._recording = recording
        self._queue: deque[RecordedAnswer] = deque()
        self._queued_bytes = 0
        self._flushing = asyncio.Lock()
        self._pending: dict[str, CompletionRef] = {}
        self._cleaned = 0.0

    def expect(self, completion: str, ref: CompletionRef) -> None:
        """Accept feedback on a completion whose id was just sent to a client."""
        if self._recording:
            self._pending[completion] = ref

    def enqueue(self, answer: RecordedAnswer) -> None:
        """Queue an answer to be written; with a full queue it is dropped and counted."""
        if not self._recording:
            return
        if len(self._queue) >= self._capacity or self._queued_bytes + answer.bytes > MOST_BYTES:
            self._metrics.traffic_dropped_total.inc()
            self._pending.pop(answer.id, None)
            return
        self._queue.append(answer)
        self._queued_bytes += answer.bytes

    def find_completion(self, completion: str) -> CompletionRef | None:
        """The voice, version and conversation of a completion; None if it is unknown. Blocks."""
        pending = self._pending.get(completion)
        if pending is not None:
            return pending
        with reading(self._database) as session:
            row = session.get(AnswerRow, completion)
            return CompletionRef(row.voice, row.version, row.conversation) if row is not None else None

    def find_conversation(self, name: str, adapters: frozenset[str] | None = None) -> CompletionRef | None:
        """The last answer of a conversation, with the conversation's name as stored; None if it is unknown. Blocks.

        Args:
            adapters: consider the answers of these voices only; None for all.
        """
        for ref in reversed(list(self._pending.values())):
            if ref.conversation == name and (adapters is None or ref.adapter in adapters):
                return replace(ref, conversation=stored_name(name, self._policies.for_voice(ref.adapter)))
        query = select(AnswerRow).where(AnswerRow.conversation.in_((name, digest_text(name))))
        if adapters is not None:
            query = query.where(AnswerRow.voice.in_(adapters))
        with reading(self._database) as session:
            row = session.scalar(query.order_by(AnswerRow.at.desc()).limit(1))
            return CompletionRef(row.voice, row.version, row.conversation) if row is not None else None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write answers while the block runs, and the rest after it."""
        try:
            async with working(self.run()):
                yield
        finally:
            await self.close()

    async def run(self) -> None:
        """Write queued answers until cancelled. An outage of the database only delays them."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await self.flush()
                await self._clean()
            except OUTAGES as error:
                log.error("%d answers wait to be written: %s", len(self._queue), type(error).__name__)
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                log.exception("writing answers failed; trying again")
                await asyncio.sleep(RETRY_SECONDS)

    async def flush(self) -> None:
        """Write all answers queued so far."""
        async with self._flushing:
            for _ in range(-(-len(self._queue) // BATCH)):
                batch = [self._queue[i] for i in range(min(BATCH, len(self._queue)))]
                await in_thread(self._write, batch)
                for answer in batch:
                    self._queue.popleft()
                    self._queued_bytes -= answer.bytes
                    self._pending.pop(answer.id, None)

    async def close(self) -> None:
        """Write the rest; answers that cannot be written now are lost, which is logged and counted."""
        try:
            await self.flush()
        except SQLAlchemyError:
            log.error("%d answers could not be written and are lost", len(self._queue))
            self._metrics.traffic_dropped_total.inc(len(self._queue))

    def _write(self, batch: list[RecordedAnswer]) -> None:
        """Write a batch at once. If the database refuses it, write one by one and drop the answer that is refused."""
        try:
            policies = (self._policies.for_voice(answer.ref.adapter) for answer in batch)
            self._insert([row_of(*one, self._measure, self._hasher) for one in zip(batch, policies, strict=True)])
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
        with writing(self._database) as session:  # a batch may be tried again after it was written
            session.execute(insert_for(session)(AnswerRow).on_conflict_do_nothing(), rows)

    async def _clean(self) -> None:
        if self._keep_days is None or time.monotonic() - self._cleaned < CLEANING_SECONDS:
            return
        self._cleaned = time.monotonic()
        deleted = await in_thread(delete_before, self._database, now() - timedelta(days=self._keep_days))
        if deleted:
            log.info("deleted %d answers older than %g days", deleted, self._keep_days)
