"""/admin/drift: reports of drift, and alarms to acknowledge."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from polytone.serve.drift.report import report
from polytone.serve.services import Services

from .auth import admin_actor


def drift_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/admin/drift", tags=["data"])
    actor = Annotated[str, Depends(admin_actor(services))]

    @router.get("")
    async def drift(_: actor, version: Annotated[str | None, Query(max_length=80)] = None) -> dict[str, Any]:
        """What changed in what versions say, since when and how sure that is, with examples."""
        return {"versions": await asyncio.to_thread(report, services.database, version)}

    @router.post("/{version}/{signal}/acknowledge")
    async def acknowledge(version: str, signal: str, who: actor) -> dict[str, Any]:
        """End an alarm; its detector starts anew against the same reference."""
        return await asyncio.to_thread(services.drift.acknowledge, version, signal, who)

    return router
