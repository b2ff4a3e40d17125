"""/admin/reviews: the queue of answers that people review."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field, model_validator

from polytone.contract.errors import NotFoundError
from polytone.contract.models import FrozenModel
from polytone.serve.database.tables import FeedbackRow
from polytone.serve.services import Services
from polytone.serve.traffic.feedback import as_json, new_row
from polytone.serve.traffic.reviews import LEASE_SECONDS, Decision, ReviewItem, item_json
from polytone.serve.traffic.schemas import Annotator, FeedbackBody

from .auth import admin_actor

Name = Annotated[str, Field(min_length=1, max_length=100)]


class LeaseBody(FrozenModel):
    """Who reviews, of which voice, and for how long the item is theirs."""

    reviewer: Name
    adapter: Annotated[str | None, Field(max_length=63)] = None
    seconds: Annotated[float, Field(ge=10, le=86_400)] = LEASE_SECONDS


class DecisionBody(FrozenModel):
    """accept: good as it is. edit: good as `text` says it. reject: of no use, to be left out of every export."""

    reviewer: Name
    decision: Decision
    text: str | None = None

    @model_validator(mode="after")
    def _sense(self) -> "DecisionBody":
        if (self.decision is Decision.EDIT) != bool((self.text or "").strip()):
            raise ValueError("edit comes with a text, and nothing else does")
        return self


def review_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/admin/reviews", tags=["data"])
    actor = Annotated[str, Depends(admin_actor(services))]
    reviews = services.reviews

    @router.get("")
    async def count_reviews(_: actor) -> dict[str, Any]:
        """How many answers wait for review, were accepted, edited or rejected, by reason."""
        counts = await asyncio.to_thread(reviews.counts)
        return {"reviews": [{"state": s, "reason": r, "count": count} for (s, r), count in sorted(counts.items())]}

    @router.post("/next", response_model=None)
    async def next_review(body: LeaseBody, _: actor) -> dict[str, Any]:
        """Lease the next answer to look at; `item` is null where there is none."""
        item = await asyncio.to_thread(reviews.lease, body.reviewer, body.adapter, body.seconds)
        return {"item": shown(item) if item else None}

    @router.post("/{completion_id}")
    async def decide(completion_id: str, body: DecisionBody, _: actor) -> dict[str, Any]:
        """Close an item. An edit becomes a correction."""
        correction = None
        if body.decision is Decision.EDIT:
            correction = await correct(services, completion_id, body)
        row = await asyncio.to_thread(reviews.decide, completion_id, body.decision, body.reviewer, correction)
        feedback = as_json(correction) if correction else None
        return {"completion_id": row.completion_id, "state": row.state, "feedback": feedback}

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
