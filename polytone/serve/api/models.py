"""GET /v1/models: the base and the voices, and what each resolves to now."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from polytone.contract.errors import NotFoundError
from polytone.serve.adapters.rollout import Rollout
from polytone.serve.auth.keys import Key
from polytone.serve.services import Services

from .auth import inference_caller


def model_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/v1/models", tags=["models"])
    who = Annotated[Key | None, Depends(inference_caller(services))]

    @router.get("")
    async def list_models(key: who) -> dict[str, Any]:
        """The base and every voice that answers now, as OpenAI lists models; of them what the key may ask for."""
        return {"object": "list", "data": cards(services, key)}

    @router.get("/{model}")
    async def get_model(model: str, key: who) -> dict[str, Any]:
        """One of them."""
        for card in cards(services, key):
            if model in (card["id"], card["version"]):
                return card
        raise NotFoundError(f"The model {model!r} does not exist here.", code="model_not_found", param="model")

    return router


def cards(services: Services, key: Key | None) -> list[dict[str, Any]]:
    """OpenAI's model objects with `parent` (the base's id), the exact `version`, and the voice's own defaults."""
    base = services.adapters.base.id
    voices = sorted(services.adapters.rollouts.items())
    everything = [card(base, None, base), *(voice_card(services, voice, rollout) for voice, rollout in voices)]
    return [one for one in everything if key is None or key.allows(one["id"], one["id"])]


def voice_card(services: Services, voice: str, rollout: Rollout) -> dict[str, Any]:
    """`version` is the one with the greatest weight; `versions` are all of a rollout of several."""
    main = max(rollout.parts, key=lambda part: part.weight).version
    manifest = services.adapters.manifest(main)
    sampling = manifest.sampling.model_dump(exclude_none=True) if manifest and manifest.sampling else None
    return {
        **card(voice, services.adapters.base.id, main),
        "created": int(manifest.created.timestamp()) if manifest else 0,
        "versions": rollout.as_json()["versions"],
        "system_prompt": manifest.system_prompt if manifest else None,
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
