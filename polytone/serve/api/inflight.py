"""Requests that are being answered: each has a lease, a deadline and a stream, and is counted once, when it ends."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from polytone.contract.errors import PolytoneError
from polytone.contract.version_id import voice_of
from polytone.serve.adapters.loaded import AdapterLease, Route
from polytone.serve.auth.keys import Key
from polytone.serve.database.session import now
from polytone.serve.engine.base import Body, EngineError
from polytone.serve.engine.events import ReplyBuilder, StreamEvent, parse_event
from polytone.serve.limits import RequestLimits
from polytone.serve.services import Services
from polytone.serve.traffic.capture import CompletionRef, RecordedAnswer

from .chat_request import complete_request, include_usage
from .errors import error_response, for_stream

VERSION_HEADER = "x-polytone-adapter"
CLIENT_LEFT = 499

Generate = Callable[[Body, str | None], Coroutine[Any, Any, Body | AsyncIterator[str]]]
T = TypeVar("T")


async def answer(inflight: "InflightRequest", body: Body, generate: Generate) -> Response:
    """The whole answer or its stream. The request is closed here, or by the stream that is returned."""
    route = inflight.route
    headers = {VERSION_HEADER: route.version or route.model, **inflight.limit_headers()}
    try:
        await inflight.acquire()
        engine_request = complete_request(body, route.manifest, inflight.limits)
        shows_usage = include_usage(engine_request)
        result = await inflight.run_or_abort(generate(engine_request, route.version))
        if isinstance(result, dict):
            await inflight.verified()
            inflight.add_response(result)
            inflight.record(engine_request)
            inflight.close(200)
            return JSONResponse(result, headers=headers)
        # The first event comes before the status is sent, so that what fails early is an HTTP error.
        text = await inflight.run_or_abort(anext(result))
        try:
            first = inflight.read(text)
            await inflight.verified()
        except BaseException:
            await close_stream(result)
            raise
    except PolytoneError as error:
        inflight.close(error.status)
        return error_response(error, headers)
    except BaseException:
        inflight.close(500)
        raise
    inflight.first_byte()
    inflight.record(engine_request)
    return EventStream(inflight, first, result, shows_usage, headers)


class EventStream(StreamingResponse):
    """Server-sent events. Whatever ends it, the engine's request ends and the version's lease is released."""

    def __init__(
        self,
        inflight: "InflightRequest",
        first: StreamEvent,
        rest: AsyncIterator[str],
        shows_usage: bool,
        headers: dict[str, str],
    ) -> None:
        super().__init__(self._stream(first), media_type="text/event-stream", headers=headers)
        self._inflight = inflight
        self._rest = rest
        self._shows_usage = shows_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await close_stream(self._rest)
            self._inflight.close()

    async def _stream(self, first: StreamEvent) -> AsyncIterator[str]:
        inflight = self._inflight
        try:
            yield first.text
            while (event := await inflight.next_event(self._rest)) is not None:
                if event.usage is not None and not event.choices:
                    inflight.count_usage(event.usage)
                    if not self._shows_usage:
                        continue
                yield event.text
            inflight.close(200)
        except PolytoneError as error:
            inflight.close(error.status)
            yield for_stream(error)


class InflightRequest:
    """Made after `admission.enter`; `close` gives everything back and may be called again."""

    def __init__(
        self,
        services: Services,
        request: Request,
        route: Route,
        key: Key | None,
        conversation: str | None,
        body_bytes: int,
    ) -> None:
        self.route = route
        self._services = services
        self._request = request
        self._key = key
        self._conversation = conversation
        self._body_bytes = body_bytes
        self._received_at = now()
        self._began = time.monotonic()
        self._deadline = self._began + services.limits.answer_seconds
        self._lease: AdapterLease | None = None
        self._usage = (0, 0)
        self._first_token: float | None = None
        self._engine_request: Body | None = None
        self._reply = ReplyBuilder()
        self._open = True
        self._aborted = asyncio.Event()
        self._next: asyncio.Timeout | None = None
        services.inflight.add(self)
        services.metrics.in_flight.inc()

    @property
    def limits(self) -> RequestLimits:
        return self._services.limits.request

    def limit_headers(self) -> dict[str, str]:
        return self._services.admission.headers(self._key)

    def abort(self) -> None:
        """End with an error, at once: the engine is gone, and not every engine tells those who wait for it."""
        self._aborted.set()
        if self._next is not None:
            self._next.reschedule(asyncio.get_running_loop().time())

    async def acquire(self) -> None:
        """Wait for the version's turn in the engine."""
        if self.route.adapter is not None:
            self._lease = await self.run_or_abort(self._services.adapters.acquire(self.route.adapter))

    async def verified(self) -> None:
        """Wait until the version is verified; nothing of the answer leaves before."""
        if self._lease is not None and self._lease.verification is not None:
            await self.run_or_abort(self._lease.verified())

    async def run_or_abort(self, work: Awaitable[T]) -> T:
        """Await `work`; cancel it, and with it the engine's request, when the client leaves, the version is retired,
        the engine is gone or time is up."""
        task = asyncio.ensure_future(work)
        left = asyncio.ensure_future(client_left(self._request))
        gone = asyncio.ensure_future(self._aborted.wait())
        ends: set[asyncio.Future[Any]] = {left, gone}
        if self.route.adapter is not None:
            ends.add(asyncio.ensure_future(self.route.adapter.revoked.wait()))
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

    async def next_event(self, events: AsyncIterator[str]) -> StreamEvent | None:
        """The stream's next event; None at its end."""
        if self.route.adapter is not None and self.route.adapter.revoked.is_set():
            raise self._retired()
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())) as self._next:
                text = await anext(events, None)
        except TimeoutError:
            raise (engine_gone() if self._aborted.is_set() else self._too_late()) from None
        finally:
            self._next = None
        return self.read(text) if text is not None else None

    def read(self, text: str) -> StreamEvent:
        """Parse an event and add it to the reply. Raises EngineError for an error that the engine sends."""
        event = parse_event(text)
        if event.error is not None:
            raise engine_error(event.error, self._services.engine.healthy())
        self._reply.add(event)
        return event

    def add_response(self, response: Body) -> None:
        self._reply.add_response(response)
        self.count_usage(response.get("usage"))

    def count_usage(self, usage: Any) -> None:
        if isinstance(usage, dict):
            prompt, completion = (int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion"))
            self._usage = (prompt, completion)
            self._services.metrics.tokens_total.labels(*self._labels, "prompt").inc(prompt)
            self._services.metrics.tokens_total.labels(*self._labels, "completion").inc(completion)

    def record(self, engine_request: Body) -> None:
        """The answer is on its way: feedback on it is welcome, and `close` records it."""
        self._engine_request = engine_request
        if self._reply.completion is not None:
            self._services.recorder.expect(self._reply.completion, self._ref)

    def first_byte(self) -> None:
        self._first_token = time.monotonic() - self._began
        self._services.metrics.ttft_seconds.labels(*self._labels).observe(self._first_token)

    def close(self, status: int = CLIENT_LEFT) -> None:
        if not self._open:
            return
        self._open = False
        if self._lease is not None:
            self._lease.release()
        self._services.inflight.discard(self)
        self._services.admission.leave(self._key, sum(self._usage))
        seconds = time.monotonic() - self._began
        self._count(status, seconds)
        self._enqueue(status, seconds)

    @property
    def _labels(self) -> tuple[str, str]:
        version = self.route.version
        return (voice_of(version), version) if version else (self.route.model, self.route.model)

    @property
    def _ref(self) -> CompletionRef:
        return CompletionRef(*self._labels, self._conversation)

    def _count(self, status: int, seconds: float) -> None:
        metrics = self._services.metrics
        metrics.in_flight.dec()
        metrics.requests_total.labels(*self._labels, status).inc()
        metrics.request_seconds.labels(*self._labels).observe(seconds)
        written = self._usage[1]
        if self._first_token is not None and written > 1:
            metrics.inter_token_seconds.labels(*self._labels).observe((seconds - self._first_token) / (written - 1))

    def _enqueue(self, status: int, seconds: float) -> None:
        if self._engine_request is None or self._reply.completion is None:
            return  # nothing was answered
        message = self._reply.message()
        self._services.recorder.enqueue(
            RecordedAnswer(
                id=self._reply.completion,
                at=self._received_at,
                ref=self._ref,
                base=self._services.adapters.base.id,
                key=self._key.name if self._key else None,
                status=status,
                request=self._engine_request,
                reply=message,
                finish_reason=self._reply.finish_reason,
                usage=self._usage,
                first_token_seconds=self._first_token,
                seconds=seconds,
                bytes=self._body_bytes + len(json.dumps(message)),
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


def engine_error(error: Body, engine_lives: bool) -> EngineError:
    """An error event of the engine as ours."""
    status = error["code"] if isinstance(error.get("code"), int) else 500
    if status >= 500 and not engine_lives:
        return engine_gone()
    code = "invalid_request" if status < 500 else "engine_error"
    return EngineError(str(error.get("message")), code=code, status=status, param=error.get("param"))


def engine_gone() -> EngineError:
    return EngineError("The engine died during this answer. Ask again shortly.", code="engine_unavailable", status=503)


async def client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def close_stream(events: AsyncIterator[str]) -> None:
    close: Callable[[], Awaitable[None]] | None = getattr(events, "aclose", None)
    if close is not None:
        await close()
