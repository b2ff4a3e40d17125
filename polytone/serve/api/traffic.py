"""/admin/activity and /admin/traffic: recorded answers over time, and conversations to forget."""

import asyncio
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from polytone.serve.services import Services
from polytone.serve.traffic.activity import activity, period

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

    @router.delete("/traffic")
    async def forget(
        conversation_id: Annotated[str, Query(min_length=1, max_length=128)], who: actor
    ) -> dict[str, Any]:
        """Delete every answer of a conversation, what was said of it and what was kept of it: a person's right to be
        forgotten."""
        await services.recorder.flush()
        return {"deleted": await asyncio.to_thread(services.recorder.forget, conversation_id, who)}

    return router
