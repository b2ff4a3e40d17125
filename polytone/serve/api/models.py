"""GET /v1/models: the base and the voices, with the version that each resolves to."""

import asyncio
from difflib import get_close_matches
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from polytone.contract.errors import NotFoundError
from polytone.contract.version_id import voice_of
from polytone.serve.adapters.registry import RETIRED
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
        raise await missing_model(services, model, key)

    return router


async def missing_model(services: Services, model: str, key: Key | None) -> NotFoundError:
    """A refusal that says what became of a version, or names the models that come nearest; of them what the key may
    ask for."""
    names = [card["id"] for card in cards(services, key)]
    voice = voice_of(model)
    if voice != model and voice in names:
        states = {row.id: row.state for row in await asyncio.to_thread(services.registry.versions)}
        if states.get(model) == RETIRED:
            return not_found(f"{model} was retired. The voice {voice} answers.")
        published = [id for id, state in states.items() if voice_of(id) == voice and state != RETIRED]
        return not_found(f"There is no version {model!r}. Versions of {voice}: {', '.join(published)}.")
    similar = get_close_matches(voice, names)
    if similar:
        return not_found(f"There is no model {model!r}. Did you mean {' or '.join(similar)}?")
    return not_found(f"There is no model {model!r}. There are: {', '.join(names)}.")


def not_found(message: str) -> NotFoundError:
    return NotFoundError(message, code="model_not_found", param="model")


def cards(services: Services, key: Key | None) -> list[dict[str, Any]]:
    """OpenAI's model objects with `parent` (the base's id), the exact `version`, and the voice's own defaults."""
    base = services.adapters.base.id
    voices = sorted(services.adapters.rollouts.items())
    everything = [card(base, None, base), *(voice_card(services, voice, rollout) for voice, rollout in voices)]
    return [one for one in everything if key is None or key.allows(one["id"], one["id"])]


def voice_card(services: Services, voice: str, rollout: Rollout) -> dict[str, Any]:
    """`version` is the one with the greatest weight; `versions` are all of a rollout of several."""
    main = rollout.main
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
