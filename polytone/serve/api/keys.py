"""/admin/keys: make, list and revoke API keys."""

import asyncio
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse
from pydantic import Field

from polytone.contract.models import FrozenModel
from polytone.serve.auth.keys import Kind
from polytone.serve.database.session import now
from polytone.serve.services import Services

from .auth import admin_actor


class KeyBody(FrozenModel):
    """A key to make; limits are for each replica."""

    name: str
    kind: Kind
    adapters: list[str] | None = None
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    concurrent_requests: Annotated[int, Field(ge=1)] | None = None
    days: Annotated[int, Field(ge=1, le=3650)] | None = None


def key_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/admin/keys", tags=["admin"])
    actor = Annotated[str, Depends(admin_actor(services))]

    @router.get("")
    async def list_keys(_: actor) -> dict[str, Any]:
        """Every key ever made, without its secret."""
        return {"keys": [key.as_json() for key in await asyncio.to_thread(services.keys.all)]}

    @router.post("", status_code=201)
    async def create_key(body: KeyBody, who: actor) -> JSONResponse:
        """Make a key. Its text is in this answer and nowhere else."""
        key, text = await asyncio.to_thread(
            services.keys.create,
            body.name,
            body.kind,
            who,
            adapters=frozenset(body.adapters) if body.adapters is not None else None,
            requests_per_minute=body.requests_per_minute,
            tokens_per_minute=body.tokens_per_minute,
            concurrent_requests=body.concurrent_requests,
            expires_at=expiry(body.days),
        )
        await refresh_keys(services)
        return JSONResponse({"key": text, **key.as_json()}, 201)

    @router.delete("/{name}")
    async def revoke_key(name: str, who: actor) -> dict[str, Any]:
        """Revoke a key; at once here, within seconds on other replicas."""
        key = await asyncio.to_thread(services.keys.revoke, name, who)
        await refresh_keys(services)
        return key.as_json()

    return router


async def refresh_keys(services: Services) -> None:
    services.keyring.refresh(await asyncio.to_thread(services.keys.with_hashes))


def expiry(days: int | None) -> datetime | None:
    return now() + timedelta(days=days) if days is not None else None
