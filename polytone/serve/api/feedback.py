"""/v1/feedback: give and list feedback. /admin/feedback/export: training rows made of it."""

import asyncio
import time
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response

from polytone.contract.errors import NotFoundError
from polytone.contract.export import ExportFormat, ExportSplit
from polytone.serve.auth.keys import Key
from polytone.serve.database.session import in_utc
from polytone.serve.services import Services
from polytone.serve.traffic.capture import CompletionRef
from polytone.serve.traffic.export import export
from polytone.serve.traffic.feedback import FeedbackStore, as_json
from polytone.serve.traffic.schemas import Annotator, FeedbackBody

from .auth import NOBODY, admin_actor, inference_caller
from .json_lines import JSON_LINES, JSON_LINES_RESPONSE

ANYONE = Annotator(id=NOBODY)
ELSEWHERE_SECONDS = 2.0
LOOK_AGAIN_SECONDS = 0.1


def feedback_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/v1/feedback", tags=["feedback"])
    who = Annotated[Key | None, Depends(inference_caller(services))]
    store = FeedbackStore(services.database)

    @router.post("", status_code=201)
    async def give_feedback(body: FeedbackBody, key: who) -> dict[str, Any]:
        """Say something of an answer, a conversation or a pair; it is on disk before the 201. With the same
        `idempotency_key` it is taken once, however often it is sent."""
        target = None if body.key == "retract" else await resolve_target(services, body, key)
        annotator = body.annotator or (Annotator(id=key.name, kind="code") if key else ANYONE)
        allowed = key.adapters if key else None
        feedback = await asyncio.to_thread(store.give, body, target, annotator, allowed)
        if feedback.created:
            count(services, as_json(feedback.row))
        return as_json(feedback.row)

    @router.get("")
    async def list_feedback(
        key: who,
        adapter: Annotated[str | None, Query(max_length=63)] = None,
        version: Annotated[str | None, Query(max_length=80)] = None,
        since: datetime | None = None,
        cursor: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """What was said, in that order; `cursor` takes the `next` of the page before."""
        allowed = key.adapters if key else None
        began = in_utc(since) if since else None
        rows, after = await asyncio.to_thread(store.page, adapter, version, began, cursor, allowed, limit)
        return {"feedback": [as_json(row) for row in rows], "next": after}

    return router


def export_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/admin/feedback/export", tags=["data"])
    actor = Annotated[str, Depends(admin_actor(services))]

    @router.get("", response_model=None, responses=JSON_LINES_RESPONSE)
    async def export_feedback(
        _: actor,
        format: ExportFormat,
        adapter: Annotated[str, Query(max_length=63)],
        split: ExportSplit = ExportSplit.TRAIN,
        until: datetime | None = None,
        annotators: Annotated[list[Literal["human", "code", "llm"]] | None, Query()] = None,
        part: Literal["rows", "manifest"] = "rows",
    ) -> Response:
        """Rows to train on as JSON lines, or their manifest; with the same `until` both are of the same rows."""
        kinds = frozenset(annotators or ["human"])
        when = in_utc(until) if until else None
        exported = await asyncio.to_thread(export, services.database, format, adapter, split, when, kinds)
        manifest = exported.manifest
        headers = {"x-polytone-export": manifest.sha256, "x-polytone-export-until": manifest.filters["until"]}
        if part == "manifest":
            return JSONResponse(manifest.model_dump(mode="json", by_alias=True), headers=headers)
        return Response(exported.rows, media_type=JSON_LINES, headers=headers)

    return router


async def resolve_target(services: Services, body: FeedbackBody, key: Key | None) -> CompletionRef:
    """The answer or conversation that feedback is on.

    Raises:
        NotFoundError: `completion_not_found` or `conversation_not_found`; also for answers the key may not ask for.
    """
    if body.conversation_id is not None:
        allowed = key.adapters if key else None
        ref = await asyncio.to_thread(services.recorder.find_conversation, body.conversation_id, allowed)
        if ref is None:
            raise NotFoundError(
                f"No answer of a conversation {body.conversation_id!r} is on record.",
                code="conversation_not_found",
                param="conversation_id",
            )
        return ref
    if body.pair is not None:
        await find(services, body.pair.b, key)
        return await find(services, body.pair.a, key)
    return await find(services, body.completion_id or "", key)


async def find(services: Services, completion: str, key: Key | None) -> CompletionRef:
    """This server knows its own answers from their first byte on, another's once they are in the database."""
    ref = await asyncio.to_thread(services.recorder.find_completion, completion)
    if ref is None and len(await asyncio.to_thread(services.replicas.living)) > 1:
        deadline = time.monotonic() + ELSEWHERE_SECONDS
        while ref is None and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            ref = await asyncio.to_thread(services.recorder.find_completion, completion)
    if ref is None or not may_see(key, ref):
        raise NotFoundError(
            f"No completion {completion!r} is on record. Send the `id` of an answer.",
            code="completion_not_found",
            param="completion_id",
        )
    return ref


def may_see(key: Key | None, ref: CompletionRef) -> bool:
    return key is None or key.allows(ref.version, ref.adapter)


def count(services: Services, feedback: dict[str, Any]) -> None:
    """Count by value where there are few values; a tag is free text."""
    value = str(feedback["value"]) if feedback["key"] in ("thumb", "rating", "preference") else ""
    services.metrics.feedback_total.labels(feedback["adapter"], feedback["version"], feedback["key"], value).inc()
