"""/admin/audit: the log of changes."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from polytone.serve.services import Services

from .auth import admin_actor


def audit_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/admin/audit", tags=["admin"])
    actor = Annotated[str, Depends(admin_actor(services))]

    @router.get("")
    async def audit(
        _: actor, limit: Annotated[int, Query(ge=1, le=1000)] = 100, target: str | None = None
    ) -> dict[str, Any]:
        """Who changed what, newest first."""
        entries = await asyncio.to_thread(services.registry.audit, limit, target)
        return {"entries": [{**asdict(entry), "at": entry.at.isoformat()} for entry in entries]}

    return router
