"""/admin/audit: the log of changes."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from polytone.serve.database.audit import read_audit
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
        entries = await asyncio.to_thread(read_audit, services.database, limit, target)
        return {"entries": [entry.as_json() for entry in entries]}

    return router
