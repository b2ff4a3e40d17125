"""/admin/activity and /admin/traffic: recorded answers over time, found by a text, and deleted."""

import asyncio
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from polytone.contract.errors import InputError
from polytone.serve.services import Services
from polytone.serve.traffic.activity import activity, period
from polytone.serve.traffic.forget import answer_json, find_text, forget_conversation, forget_text
from polytone.serve.traffic.schemas import TextBody

from .auth import admin_actor


def traffic_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/admin", tags=["data"])
    actor = Annotated[str, Depends(admin_actor(services))]

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

    @router.post("/traffic/find")
    async def find(body: TextBody, _: actor) -> dict[str, Any]:
        """Find the answers in which a text was said or replied, whether the text was stored or only its hash."""
        await services.recorder.flush()
        rows = await asyncio.to_thread(find_text, services.database, body.text)
        return {"answers": [answer_json(row) for row in rows]}

    @router.delete("/traffic")
    async def forget(
        who: actor,
        conversation_id: Annotated[str | None, Query(min_length=1, max_length=128)] = None,
        body: TextBody | None = None,
    ) -> dict[str, Any]:
        """Delete every answer of a conversation, or of the conversations in which a text was said, with the feedback
        on them and what testers kept: a person's right to be forgotten."""
        await services.recorder.flush()
        if conversation_id is not None and body is None:
            deleted = await asyncio.to_thread(forget_conversation, services.database, conversation_id, who)
        elif body is not None and conversation_id is None:
            deleted = await asyncio.to_thread(forget_text, services.database, body.text, who)
        else:
            raise InputError("Send conversation_id, or a body with a text, one of the two.", code="invalid_request")
        return {"deleted": deleted}

    return router
