"""GET /admin/adapters: versions with their states and reasons, and what answers for each voice."""

from typing import Any

from fastapi import APIRouter

from polytone.contract.errors import NotFoundError

from .runtime import Runtime


def admin_routes(runtime: Runtime) -> APIRouter:
    router = APIRouter(prefix="/admin", tags=["admin"])

    @router.get("/adapters")
    async def list_adapters() -> dict[str, Any]:
        """Every voice this replica knows."""
        return {"adapters": adapters(runtime)}

    @router.get("/adapters/{name}")
    async def get_adapter(name: str) -> dict[str, Any]:
        """One voice."""
        for adapter in adapters(runtime):
            if adapter["name"] == name:
                return adapter
        raise NotFoundError(f"There is no voice {name!r}.", code="voice_not_found", param="name")

    return router


def adapters(runtime: Runtime) -> list[dict[str, Any]]:
    states = runtime.voices.states()
    names = sorted({version.partition("@")[0] for version in states} | set(runtime.voices.aliases))
    return [
        {
            "name": name,
            "answers": runtime.voices.aliases.get(name),
            "versions": [
                {"version": version, "state": state, "reason": reason}
                for version, (state, reason) in sorted(states.items())
                if version.partition("@")[0] == name
            ],
        }
        for name in names
    ]
