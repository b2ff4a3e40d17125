"""/admin/reviews, feedback/export, drift, activity and traffic: what is made of answers and feedback."""

import asyncio
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response
from pydantic import Field, model_validator

from polytone.contract.errors import NotFoundError
from polytone.serve.database.session import in_utc
from polytone.serve.database.tables import FeedbackRow
from polytone.serve.drift.report import report
from polytone.serve.services import Services
from polytone.serve.traffic.activity import activity, period
from polytone.serve.traffic.export import Format, Split, export
from polytone.serve.traffic.feedback import as_json, new_row
from polytone.serve.traffic.reviews import LEASE_SECONDS, Decision, ReviewItem, item_json
from polytone.serve.traffic.schemas import Annotator, FeedbackBody

from .auth import admin_actor
from .request_body import Strict

ROWS = "application/x-ndjson"
LINES: dict[int | str, dict[str, Any]] = {200: {"content": {ROWS: {"schema": {"type": "string"}}}}}
ConversationId = Annotated[str, Query(min_length=1, max_length=128)]
Name = Annotated[str, Field(min_length=1, max_length=100)]


class LeaseBody(Strict):
    """Who reviews, of which voice, and for how long the item is theirs."""

    reviewer: Name
    adapter: Annotated[str | None, Field(max_length=63)] = None
    seconds: Annotated[float, Field(ge=10, le=86_400)] = LEASE_SECONDS


class DecisionBody(Strict):
    """accept: good as it is. edit: good as `text` says it. reject: of no use, to be left out of every export."""

    reviewer: Name
    decision: Decision
    text: str | None = None

    @model_validator(mode="after")
    def _sense(self) -> "DecisionBody":
        if (self.decision is Decision.EDIT) != bool((self.text or "").strip()):
            raise ValueError("edit comes with a text, and nothing else does")
        return self


def data_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/admin", tags=["data"])
    actor = Annotated[str, Depends(admin_actor(services))]
    reviews = services.reviews

    @router.get("/reviews")
    async def count_reviews(_: actor) -> dict[str, Any]:
        """How many answers wait for review, were accepted, edited or rejected, by reason."""
        counts = await asyncio.to_thread(reviews.counts)
        return {"reviews": [{"state": s, "reason": r, "count": count} for (s, r), count in sorted(counts.items())]}

    @router.post("/reviews/next", response_model=None)
    async def next_review(body: LeaseBody, _: actor) -> dict[str, Any]:
        """Lease the next answer to look at; `item` is null where there is none."""
        item = await asyncio.to_thread(reviews.lease, body.reviewer, body.adapter, body.seconds)
        return {"item": shown(item) if item else None}

    @router.post("/reviews/{completion_id}")
    async def decide(completion_id: str, body: DecisionBody, _: actor) -> dict[str, Any]:
        """Close an item. An edit becomes a correction."""
        correction = None
        if body.decision is Decision.EDIT:
            correction = await correct(services, completion_id, body)
        row = await asyncio.to_thread(reviews.decide, completion_id, body.decision, body.reviewer, correction)
        feedback = as_json(correction) if correction else None
        return {"completion_id": row.completion_id, "state": row.state, "feedback": feedback}

    @router.get(
        "/feedback/export", response_model=None, responses={200: {"content": {ROWS: {"schema": {"type": "string"}}}}}
    )
    async def export_feedback(
        _: actor,
        format: Format,
        adapter: Annotated[str, Query(max_length=63)],
        split: Split = Split.TRAIN,
        until: datetime | None = None,
        annotators: Annotated[list[Literal["human", "code", "llm"]] | None, Query()] = None,
        part: Literal["rows", "manifest"] = "rows",
    ) -> Response:
        """Rows to train on as JSON lines, or their manifest; with the same `until` both are of the same rows."""
        kinds = frozenset(annotators or ["human"])
        when = in_utc(until) if until else None
        made = await asyncio.to_thread(export, services.database, format, adapter, split, when, kinds)
        said = {"x-polytone-export": made.manifest.sha256, "x-polytone-export-until": made.manifest.filters["until"]}
        if part == "manifest":
            return JSONResponse(made.manifest.model_dump(mode="json", by_alias=True), headers=said)
        return Response(made.rows, media_type=ROWS, headers=said)

    @router.get("/drift")
    async def drift(_: actor, version: Annotated[str | None, Query(max_length=80)] = None) -> dict[str, Any]:
        """What changed in what versions say, since when and how sure that is, with examples."""
        return {"versions": await asyncio.to_thread(report, services.database, version)}

    @router.post("/drift/{version}/{signal}/acknowledge")
    async def acknowledge(version: str, signal: str, who: actor) -> dict[str, Any]:
        """End an alarm; its detector starts anew against the same reference."""
        return await asyncio.to_thread(services.drift.acknowledge, version, signal, who)

    @router.get("/activity")
    async def over_time(
        _: actor,
        since: datetime | None = None,
        until: datetime | None = None,
        buckets: Annotated[int, Query(ge=1, le=500)] = 48,
    ) -> dict[str, Any]:
        """Answers, tokens, times and thumbs of every version over time; without `since` the 24 hours before `until`."""
        begin, end = period(since, until, buckets)
        await services.recorder.flush()
        return await asyncio.to_thread(activity, services.database, begin, end, buckets)

    @router.delete("/traffic")
    async def forget(
        conversation_id: Annotated[str, Query(min_length=1, max_length=128)], who: actor
    ) -> dict[str, Any]:
        """Delete every answer of a conversation, what was said of it and what was kept of it: a person's right to be
        forgotten."""
        await services.recorder.flush()
        return {"deleted": await asyncio.to_thread(services.recorder.forget, conversation_id, who)}

    return router


async def correct(services: Services, completion: str, decision: DecisionBody) -> FeedbackRow:
    """The correction that an edit is; it is added with the decision."""
    known = await asyncio.to_thread(services.recorder.find_completion, completion)
    if known is None:
        raise NotFoundError(f"No completion {completion!r} is on record.", code="completion_not_found")
    body = FeedbackBody(key="correction", completion_id=completion, text=decision.text)
    return new_row(body, known, Annotator(id=decision.reviewer))


def shown(item: ReviewItem) -> dict[str, Any]:
    return item_json(item, [as_json(row) for row in item.feedback])
