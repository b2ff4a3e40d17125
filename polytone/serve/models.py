"""GET /v1/models: the base and the voices, and what each resolves to now."""

from typing import Any

from fastapi import APIRouter

from polytone.contract.errors import NotFoundError

from .runtime import Runtime


def model_routes(runtime: Runtime) -> APIRouter:
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("")
    async def list_models() -> dict[str, Any]:
        """The base and every voice that answers now, as OpenAI lists models."""
        return {"object": "list", "data": cards(runtime)}

    @router.get("/{model}")
    async def get_model(model: str) -> dict[str, Any]:
        """One of them."""
        for card in cards(runtime):
            if model in (card["id"], card["version"]):
                return card
        raise NotFoundError(f"The model {model!r} does not exist here.", code="model_not_found", param="model")

    return router


def cards(runtime: Runtime) -> list[dict[str, Any]]:
    """OpenAI's model objects with `parent` (the base's id), the exact `version`, and the voice's own defaults."""
    base = runtime.voices.base.id
    voices = sorted(runtime.voices.aliases.items())
    return [card(base, None, base), *(voice_card(runtime, alias, version) for alias, version in voices)]


def voice_card(runtime: Runtime, alias: str, version: str) -> dict[str, Any]:
    manifest = runtime.voices.manifest(version)
    sampling = manifest.sampling.model_dump(exclude_none=True) if manifest and manifest.sampling else None
    prompt = manifest.system_prompt if manifest else None
    created = int(manifest.created.timestamp()) if manifest else 0
    return {
        **card(alias, runtime.voices.base.id, version),
        "created": created,
        "system_prompt": prompt,
        "sampling": sampling,
    }


def card(model: str, parent: str | None, version: str) -> dict[str, Any]:
    return {
        "id": model,
        "object": "model",
        "created": 0,
        "owned_by": "polytone",
        "parent": parent,
        "version": version,
    }
