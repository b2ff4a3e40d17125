"""/admin: versions, rollouts, the audit log and keys. Every route needs an admin key once a key exists."""

import asyncio
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from polytone.contract.base import base_folder, module_shapes
from polytone.contract.errors import NotFoundError
from polytone.contract.names import check_name
from polytone.contract.version_id import VersionId, voice_of
from polytone.serve.adapters.fetch import apart
from polytone.serve.adapters.promotion_gates import Gates, evaluations_of
from polytone.serve.adapters.rollout import Part
from polytone.serve.adapters.upload import receive_version
from polytone.serve.auth.keys import Kind
from polytone.serve.database.session import now
from polytone.serve.services import Services

from .auth import admin_actor
from .openapi import UPLOAD
from .request_body import Strict, limited
from .version_views import known_version


class PartBody(Strict):
    """A version and its weight, relative to the others'."""

    version: str
    weight: Annotated[int, Field(ge=0, le=1_000_000)] = 100


class RolloutBody(Strict):
    """`generation` is the one this change replaces, as GET showed it; leave it out to replace whatever is there.

    `force` lets versions answer that failed the gates of their evaluation; the audit log says so.
    """

    versions: Annotated[list[PartBody], Field(min_length=1, max_length=16)]
    generation: int | None = None
    force: bool = False


class GenerationBody(Strict):
    generation: int | None = None


class KeyBody(Strict):
    """A key to make; limits are for each replica."""

    name: str
    kind: Kind
    adapters: list[str] | None = None
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    concurrent_requests: Annotated[int, Field(ge=1)] | None = None
    days: Annotated[int, Field(ge=1, le=3650)] | None = None


def admin_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/admin", tags=["admin"])
    actor = Annotated[str, Depends(admin_actor(services))]

    @router.get("/adapters")
    async def list_adapters(_: actor) -> dict[str, Any]:
        """Every voice: its rollout, what answers here, and its versions with states and reasons."""
        return {"adapters": await adapters(services)}

    @router.get("/adapters/{name}")
    async def get_adapter(name: str, _: actor) -> dict[str, Any]:
        """One voice, with the rollouts it had and the generation that a rollback of each goes back to."""
        for adapter in await adapters(services):
            if adapter["name"] == name:
                history = await asyncio.to_thread(services.registry.history, name)
                return {**adapter, "history": [{**one.as_json(), "previous": one.previous} for one in history]}
        raise NotFoundError(f"There is no voice {name!r}.", code="voice_not_found", param="name")

    @router.post("/adapters/{name}/versions", status_code=201, openapi_extra=UPLOAD)
    async def upload(name: str, request: Request, who: actor) -> dict[str, Any]:
        """Take a tar.gz of an adapter folder, check and publish it. It answers under its id, not yet for the voice."""
        check_name(name)
        return await receive(services, name, request, who)

    @router.put("/adapters/{name}/rollout")
    async def put_rollout(name: str, body: RolloutBody, who: actor) -> dict[str, Any]:
        """Say which versions answer for a voice, by weight; a conversation stays with its version."""
        return await asyncio.to_thread(roll_out, services, name, body, who)

    @router.post("/adapters/{name}/rollback")
    async def roll_back(name: str, who: actor, body: GenerationBody | None = None) -> dict[str, Any]:
        """Go back to the rollout before the last."""
        expected = body.generation if body else None
        rollout = await asyncio.to_thread(services.registry.roll_back, name, who, expected)
        return {"name": name, **rollout.as_json()}

    @router.delete("/adapters/{name}")
    async def remove_voice(name: str, who: actor) -> dict[str, Any]:
        """Let nobody answer for a voice; its versions stay published under their ids."""
        return {"name": name, "versions": await asyncio.to_thread(services.registry.remove_voice, name, who)}

    @router.get("/adapters/{name}/versions/{digest}")
    async def get_version(name: str, digest: str, _: actor) -> dict[str, Any]:
        """One version: its state, what it was made of, and what its evaluation found."""
        return await asyncio.to_thread(known_version, services, str(VersionId(name, digest)))

    @router.delete("/adapters/{name}/versions/{digest}")
    async def retire(name: str, digest: str, who: actor) -> dict[str, Any]:
        """Stop routing to a version, let its answers end, free its memory. Its files stay."""
        version = str(VersionId(name, digest))
        changed = await asyncio.to_thread(services.registry.retire, version, who)
        return {"version": version, "state": "retired", "changed": changed}

    @router.get("/audit")
    async def audit(
        _: actor, limit: Annotated[int, Query(ge=1, le=1000)] = 100, target: str | None = None
    ) -> dict[str, Any]:
        """Who changed what, newest first."""
        entries = await asyncio.to_thread(services.registry.audit, limit, target)
        return {
            "entries": [
                {
                    "id": entry.id,
                    "at": entry.at.isoformat(),
                    "actor": entry.actor,
                    "action": entry.action,
                    "target": entry.target,
                    "before": entry.before,
                    "after": entry.after,
                }
                for entry in entries
            ]
        }

    @router.get("/keys")
    async def list_keys(_: actor) -> dict[str, Any]:
        """Every key ever made, without its secret."""
        return {"keys": [key.as_json() for key in await asyncio.to_thread(services.keys.all)]}

    @router.post("/keys", status_code=201)
    async def create_key(body: KeyBody, who: actor) -> JSONResponse:
        """Make a key. Its text is in this answer and nowhere else."""
        key, text = await asyncio.to_thread(
            lambda: services.keys.create(
                body.name,
                body.kind,
                who,
                frozenset(body.adapters) if body.adapters is not None else None,
                body.requests_per_minute,
                body.tokens_per_minute,
                body.concurrent_requests,
                expiry(body.days),
            )
        )
        await refresh_keys(services)
        return JSONResponse({"key": text, **key.as_json()}, 201)

    @router.delete("/keys/{name}")
    async def revoke_key(name: str, who: actor) -> dict[str, Any]:
        """Revoke a key; at once here, within seconds on other replicas."""
        key = await asyncio.to_thread(services.keys.revoke, name, who)
        await refresh_keys(services)
        return key.as_json()

    return router


def roll_out(services: Services, name: str, body: RolloutBody, who: str) -> dict[str, Any]:
    parts = [Part(part.version, part.weight) for part in body.versions]
    gates = Gates(services.home, body.force)
    rollout = services.registry.roll_out(name, parts, who, body.generation, gates=gates)
    return {"name": name, **rollout.as_json(), **evaluations_of(services.home, rollout.versions)}


async def adapters(services: Services) -> list[dict[str, Any]]:
    desired = await asyncio.to_thread(services.registry.desired)
    states = services.adapters.states()
    resident = services.adapters.loaded()
    here = services.adapters.rollouts
    versions = desired.versions | set(states)
    names = sorted({voice_of(version) for version in versions} | set(desired.rollouts))
    return [
        {
            "name": name,
            "rollout": desired.rollouts[name].as_json() if name in desired.rollouts else None,
            "answers": here[name].as_json() if name in here else None,
            "versions": [
                {
                    "version": version,
                    "state": states.get(version, ("published", None))[0],
                    "reason": states.get(version, ("published", None))[1],
                    "resident": version in resident,
                }
                for version in sorted(versions)
                if voice_of(version) == name
            ],
        }
        for name in names
    ]


async def receive(services: Services, name: str, request: Request, who: str) -> dict[str, Any]:
    """Write the body to a file, then check it in a thread; the engine notices nothing. The store has it before the
    database does, so that no replica hears of what it cannot fetch."""
    store = services.store
    services.home.adapters.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix=".upload.", suffix=".tar.gz", dir=services.home.adapters) as file:
        async for chunk in limited(request, services.limits.upload_bytes):
            await asyncio.to_thread(file.write, chunk)
        file.flush()
        manifest = await (asyncio.to_thread if store is None else apart)(
            receive_version,
            Path(file.name),
            name,
            services.home,
            services.adapters.base,
            module_shapes(base_folder(services.home, services.adapters.base.id) / "source"),
            services.adapters.max_rank,
            services.limits.upload_bytes,
            store.put if store is not None else None,
        )
    created = await asyncio.to_thread(services.registry.publish, manifest.version, who)
    return {"version": manifest.version, "created": created}


async def refresh_keys(services: Services) -> None:
    services.keyring.refresh(await asyncio.to_thread(services.keys.with_hashes))


def expiry(days: int | None) -> datetime | None:
    return now() + timedelta(days=days) if days is not None else None
