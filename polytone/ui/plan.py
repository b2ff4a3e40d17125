"""A change that someone is about to make: its effect in words, and the request that makes it."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .api import Api, ApiError, Json
from .wording import counted


class PlanError(Exception):
    """The change is not possible; the message says why, for a person."""


@dataclass(frozen=True)
class Plan:
    """`sentence` says what the change will do, `done` that it was made.

    `file` is sent if there is one, and the page's copy of it removed. `seen` is a voice and the generation that was
    shown, for changes whose request has none. `anyway` is the same change by force, for refusals by failed gates.
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
        ApiError: with the server's own code and reasons, or `changed_meanwhile` if `seen` is outdated.
    """
    if plan.seen is not None:
        await check_seen(api, *plan.seen)
    if plan.file is not None:
        return await api.upload(plan.path, await asyncio.to_thread(read_once, Path(plan.file)))
    if plan.method == "DELETE":
        return await api.delete(plan.path)
    return await (api.put(plan.path, plan.body or {}) if plan.method == "PUT" else api.post(plan.path, plan.body))


def read_once(file: Path) -> bytes:
    """The content of a file, which is removed."""
    try:
        content = file.read_bytes()
        file.unlink()
    except OSError:
        raise ApiError("The page no longer has the file. Choose it again.", "file_gone") from None
    return content


async def check_seen(api: Api, voice: str, generation: int) -> None:
    if generation_of(await api.get(f"/admin/adapters/{voice}")) != generation:
        raise ApiError(f"Someone else has changed {voice}.", "changed_meanwhile", 409)


def generation_of(voice: Json) -> int:
    """The generation of the newest rollout, which may be removed by now; 0 if there never was one."""
    history = voice.get("history") or []
    return int(history[0]["generation"]) if history else 0


def refusal(error: ApiError) -> tuple[str, list[str]]:
    """The reason why a change was not made: a sentence, and all reasons if there are several."""
    match error.code:
        case "changed_meanwhile":
            return "Nothing was changed: someone else changed it first. The page now shows the current state.", []
        case "gates_failed":
            return f"Nothing was changed: {counted(len(error.reasons), 'gate')} failed.", list(error.reasons)
    if len(error.reasons) > 1:
        return f"Nothing was changed. The server refused for {len(error.reasons)} reasons:", list(error.reasons)
    return error.message, []
