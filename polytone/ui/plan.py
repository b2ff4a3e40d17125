"""A change that someone is about to make: what it will do in words, and how the server is asked for it."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .api import Api, ApiError, Json


class PlanError(Exception):
    """It cannot be done, and why: a sentence for a person."""


@dataclass(frozen=True)
class Plan:
    """`sentence` says what it will do, `done` that it was.

    `file` is sent where there is one, and the page's copy of it removed. `seen` is a voice and the generation it was
    seen at, for changes that the server takes without one. `anyway` is the same change by force, where the server may
    refuse it for failed gates.
    """

    sentence: str
    done: str
    method: Literal["PUT", "POST", "DELETE"]
    path: str
    body: Json | None = None
    file: str | None = None
    seen: tuple[str, int] | None = None
    anyway: "Plan | None" = None


async def carry_out(api: Api, plan: Plan) -> Json:
    """Ask the server for the change.

    Raises:
        ApiError: with the server's own code and reasons, or `changed_meanwhile` where `seen` is no longer so.
    """
    if plan.seen is not None:
        await check_seen(api, *plan.seen)
    if plan.file is not None:
        return await api.upload(plan.path, await asyncio.to_thread(taken, Path(plan.file)))
    if plan.method == "DELETE":
        return await api.delete(plan.path)
    return await (api.put(plan.path, plan.body or {}) if plan.method == "PUT" else api.post(plan.path, plan.body))


def taken(file: Path) -> bytes:
    """Its content; the page keeps no copy of it."""
    try:
        content = file.read_bytes()
        file.unlink()
    except OSError:
        raise ApiError("The page does not have the file any more. Choose it again.", "file_gone") from None
    return content


async def check_seen(api: Api, voice: str, generation: int) -> None:
    if generation_of(await api.get(f"/admin/adapters/{voice}")) != generation:
        raise ApiError(f"{voice} was changed by someone else meanwhile.", "changed_meanwhile", 409)


def generation_of(voice: Json) -> int:
    """Of the newest rollout, which may have been taken away since; 0 where there never was one."""
    history = voice.get("history") or []
    return int(history[0]["generation"]) if history else 0


def refusal(error: ApiError) -> tuple[str, list[str]]:
    """Why a change was not made: a sentence, and every reason where there are several."""
    match error.code:
        case "changed_meanwhile":
            return "Someone else was faster, so nothing was changed. The page now shows how it is: decide again.", []
        case "gates_failed":
            return f"Nothing was changed: {counted(len(error.reasons), 'gate')} failed.", list(error.reasons)
    if len(error.reasons) > 1:
        return f"It was refused for {len(error.reasons)} reasons, and nothing was changed:", list(error.reasons)
    return error.message, []


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
