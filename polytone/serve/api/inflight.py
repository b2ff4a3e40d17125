"""One answer under way: its place, its version and its deadline are held, and it is counted, until it is closed."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request

from polytone.contract.version_id import voice_of
from polytone.serve.adapters.manager import AdapterLease, Route
from polytone.serve.auth.keys import Key
from polytone.serve.database.session import now
from polytone.serve.engine.base import Body, EngineError
from polytone.serve.engine.events import completion_id
from polytone.serve.limits import RequestLimits
from polytone.serve.services import Services
from polytone.serve.traffic.capture import CompletionRef, RecordedAnswer

CLIENT_LEFT = 499

T = TypeVar("T")


class InflightRequest:
    """Made after `admission.enter`; `close` gives everything back and may be called again."""

    def __init__(
        self,
        services: Services,
        route: Route,
        key: Key | None,
        request: Request,
        conversation: str | None = None,
        asked_bytes: int = 0,
    ) -> None:
        self.route = route
        self._services = services
        self._key = key
        self._request = request
        self._conversation = conversation
        self._asked_bytes = asked_bytes
        self._at = now()
        self._began = time.monotonic()
        self._deadline = self._began + services.limits.answer_seconds
        self._held: AdapterLease | None = None
        self._usage = (0, 0)
        self._first_token: float | None = None
        self._asked: Body = {}
        self._answer: Body | list[str] | None = None
        self._completion: str | None = None
        self._open = True
        self._aborted = asyncio.Event()
        self._next: asyncio.Timeout | None = None
        services.inflight.add(self)
        services.metrics.in_flight.inc()

    @property
    def limits(self) -> RequestLimits:
        return self._services.limits.request

    @property
    def _labels(self) -> tuple[str, str]:
        version = self.route.version
        return (voice_of(version), version) if version else (self.route.model, self.route.model)

    def limit_headers(self) -> dict[str, str]:
        return self._services.admission.headers(self._key)

    def engine_lives(self) -> bool:
        return self._services.engine.healthy()

    def abort(self) -> None:
        """The engine is gone, and not every engine tells those who wait for it: end with an error, at once."""
        self._aborted.set()
        if self._next is not None:
            self._next.reschedule(asyncio.get_running_loop().time())

    async def acquire(self) -> None:
        """Wait for the version's turn in the engine."""
        if self.route.voice is not None:
            self._held = await self.run_or_abort(self._services.adapters.acquire(self.route))

    async def proven(self) -> None:
        """Wait until the version has shown to be the one that was trained; nothing of the answer leaves before."""
        if self._held is not None and self._held.proof is not None:
            await self.run_or_abort(self._held.proven())

    async def run_or_abort(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`; cancel it, and with it the engine's request, when the client leaves, the version goes or time
        is up."""
        task = asyncio.ensure_future(work)
        left = asyncio.ensure_future(client_left(self._request))
        gone = asyncio.ensure_future(self._aborted.wait())
        ends: set[asyncio.Future[Any]] = {left, gone}
        if self.route.voice is not None:
            ends.add(asyncio.ensure_future(self.route.voice.revoked.wait()))
        try:
            await asyncio.wait(
                {task, *ends}, timeout=self._deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED
            )
            if task.done():
                return task.result()
            if left.done():
                raise EngineError("The client left.", code="client_left", status=CLIENT_LEFT)
            if gone.done():
                raise engine_gone()
            if any(end.done() for end in ends):
                raise self._retired()
            raise self._too_late()
        finally:
            for end in (task, *ends):
                end.cancel()

    async def next_event(self, events: AsyncIterator[str]) -> str | None:
        """The stream's next event; None at its end."""
        if self.route.voice is not None and self.route.voice.revoked.is_set():
            raise self._retired()
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())) as self._next:
                return await anext(events, None)
        except TimeoutError:
            raise (engine_gone() if self._aborted.is_set() else self._too_late()) from None
        finally:
            self._next = None

    def count_usage(self, usage: Any) -> None:
        if isinstance(usage, dict):
            read, written = (int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion"))
            self._usage = (read, written)
            self._services.metrics.tokens_total.labels(*self._labels, "prompt").inc(read)
            self._services.metrics.tokens_total.labels(*self._labels, "completion").inc(written)

    def capture(self, asked: Body, answer: Body | list[str]) -> None:
        """The answer to `asked` is on its way; a list of events may go on growing until the exchange is closed."""
        self._asked, self._answer = asked, answer
        self._completion = completion_id(answer)
        if self._completion is not None:
            self._services.recorder.expect(self._completion, CompletionRef(*self._labels, self._conversation))

    def first_byte(self) -> None:
        self._first_token = time.monotonic() - self._began
        self._services.metrics.ttft_seconds.labels(*self._labels).observe(self._first_token)

    def close(self, status: int = CLIENT_LEFT) -> None:
        if not self._open:
            return
        self._open = False
        if self._held is not None:
            self._held.release()
        self._services.inflight.discard(self)
        self._services.admission.leave(self._key, sum(self._usage))
        seconds = time.monotonic() - self._began
        self._services.metrics.in_flight.dec()
        self._services.metrics.requests_total.labels(*self._labels, status).inc()
        self._services.metrics.request_seconds.labels(*self._labels).observe(seconds)
        written = self._usage[1]
        if self._first_token is not None and written > 1:
            gap = (seconds - self._first_token) / (written - 1)
            self._services.metrics.inter_token_seconds.labels(*self._labels).observe(gap)
        self._note(status, seconds)

    def _note(self, status: int, seconds: float) -> None:
        if self._completion is None or self._answer is None:
            return  # nothing was answered
        events = self._answer if isinstance(self._answer, list) else ()
        held = self._asked_bytes + sum(len(event) for event in events)
        self._services.recorder.enqueue(
            RecordedAnswer(
                id=self._completion,
                at=self._at,
                ref=CompletionRef(*self._labels, self._conversation),
                base=self._services.adapters.base.id,
                key=self._key.name if self._key else None,
                status=status,
                request=self._asked,
                answer=self._answer,
                usage=self._usage,
                first_token_seconds=self._first_token,
                seconds=seconds,
                bytes=held,
            )
        )

    def _retired(self) -> EngineError:
        return EngineError(f"{self.route.version} was retired meanwhile.", code="version_retired", status=503)

    def _too_late(self) -> EngineError:
        return EngineError(
            f"No whole answer within {self._services.limits.answer_seconds:.0f} s. Ask for fewer tokens.",
            code="deadline_exceeded",
            status=504,
        )


def engine_gone() -> EngineError:
    return EngineError("The engine died during this answer. Ask again shortly.", code="engine_unavailable", status=503)


async def client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def close_stream(events: AsyncIterator[str]) -> None:
    close: Callable[[], Awaitable[None]] | None = getattr(events, "aclose", None)
    if close is not None:
        await close()
