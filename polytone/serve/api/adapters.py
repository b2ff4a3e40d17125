"""/admin/adapters: voices, their versions and their rollouts."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from polytone.contract.errors import NotFoundError
from polytone.contract.models import FrozenModel
from polytone.contract.names import check_name
from polytone.contract.version_id import VersionId
from polytone.serve.adapters.fetch import in_daemon_thread
from polytone.serve.adapters.promotion_gates import Gates, evaluations_of
from polytone.serve.adapters.rollout import Part
from polytone.serve.adapters.upload import receive_version
from polytone.serve.adapters.validation import ServedBase
from polytone.serve.services import Services

from .auth import admin_actor
from .request_body import allow_body
from .version_views import all_voices, view_version


class PartBody(FrozenModel):
    """A version and its weight, relative to the others'."""

    version: str
    weight: Annotated[int, Field(ge=0, le=1_000_000)] = 100


class RolloutBody(FrozenModel):
    """`generation` is the one this change replaces, as GET showed it; leave it out to replace whatever is there.

    `force` lets versions answer that failed the gates of their evaluation; the audit log says so.
    """

    versions: Annotated[list[PartBody], Field(min_length=1, max_length=16)]
    generation: int | None = None
    force: bool = False


class GenerationBody(FrozenModel):
    generation: int | None = None


def adapter_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/admin/adapters", tags=["admin"])
    actor = Annotated[str, Depends(admin_actor(services))]

    @router.get("")
    async def list_adapters(_: actor) -> dict[str, Any]:
        """Every voice: its rollout, what answers here, and its versions with states and reasons."""
        return {"adapters": await asyncio.to_thread(all_voices, services)}

    @router.get("/{name}")
    async def get_adapter(name: str, _: actor) -> dict[str, Any]:
        """One voice, with the rollouts it had and the generation that a rollback of each goes back to."""
        for adapter in await asyncio.to_thread(all_voices, services):
            if adapter["name"] == name:
                history = await asyncio.to_thread(services.registry.history, name)
                return {**adapter, "history": [{**one.as_json(), "previous": one.previous} for one in history]}
        raise NotFoundError(f"There is no voice {name!r}.", code="voice_not_found", param="name")

    @router.post("/{name}/versions", status_code=201)
    async def upload(name: str, request: Request, who: actor) -> dict[str, Any]:
        """Take a tar.gz of an adapter folder, check and publish it. It answers under its id, not yet for the voice."""
        check_name(name)
        return await receive(services, name, request, who)

    @router.put("/{name}/rollout")
    async def put_rollout(name: str, body: RolloutBody, who: actor) -> dict[str, Any]:
        """Say which versions answer for a voice, by weight; a conversation stays with its version."""
        return await asyncio.to_thread(roll_out, services, name, body, who)

    @router.post("/{name}/rollback")
    async def roll_back(name: str, who: actor, body: GenerationBody | None = None) -> dict[str, Any]:
        """Go back to the rollout that the current one replaced, past the canaries of a version that answers alone."""
        expected = body.generation if body else None
        rollout = await asyncio.to_thread(services.registry.roll_back, name, who, expected)
        return {"name": name, **rollout.as_json()}

    @router.delete("/{name}")
    async def remove_voice(name: str, who: actor) -> dict[str, Any]:
        """Let nobody answer for a voice; its versions stay published under their ids."""
        return {"name": name, "versions": await asyncio.to_thread(services.registry.remove_voice, name, who)}

    @router.get("/{name}/versions/{digest}")
    async def get_version(name: str, digest: str, _: actor) -> dict[str, Any]:
        """One version: its state, what it was made of, and what its evaluation found."""
        return await asyncio.to_thread(view_version, services, str(VersionId(name, digest)))

    @router.delete("/{name}/versions/{digest}")
    async def retire(name: str, digest: str, who: actor) -> dict[str, Any]:
        """Stop routing to a version, let its answers end, free its memory. Its files stay."""
        version = str(VersionId(name, digest))
        changed = await asyncio.to_thread(services.registry.retire, version, who)
        return {"version": version, "state": "retired", "changed": changed}

    return router


def roll_out(services: Services, name: str, body: RolloutBody, who: str) -> dict[str, Any]:
    parts = [Part(part.version, part.weight) for part in body.versions]
    gates = Gates(services.home, body.force)
    rollout = services.registry.roll_out(name, parts, who, body.generation, gates=gates)
    return {"name": name, **rollout.as_json(), **evaluations_of(services.home, rollout.versions)}


async def receive(services: Services, name: str, request: Request, who: str) -> dict[str, Any]:
    """Write the body to a file, then check it in a thread; the engine notices nothing. The store has it before the
    database does, so that no replica hears of what it cannot fetch."""
    allow_body(request, services.limits.upload_bytes)
    store = services.store
    served = ServedBase(services.home, services.adapters.base, services.adapters.max_rank)
    services.home.adapters.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix=".upload.", suffix=".tar.gz", dir=services.home.adapters) as file:
        async for chunk in request.stream():
            await asyncio.to_thread(file.write, chunk)
        file.flush()
        run = asyncio.to_thread if store is None else in_daemon_thread
        manifest = await run(receive_version, Path(file.name), name, served, services.limits.upload_bytes, store)
    created = await asyncio.to_thread(services.registry.publish, manifest.version, who)
    return {"version": manifest.version, "created": created}
