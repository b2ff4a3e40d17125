"""What the voices tab reads of the server at one look."""

import asyncio
from dataclasses import dataclass, field

from polytone.ui.api import Api, ApiError, Json

from .words import all_versions, shares

AUDIT_ENTRIES = 20


@dataclass(frozen=True)
class Look:
    """Every voice, one of them with its history, and one of its versions; `problem` says why `details` are missing."""

    voices: list[Json]
    voice: Json | None = None
    version: str | None = None
    details: Json | None = None
    problem: str | None = None
    audit: list[Json] = field(default_factory=list)


async def look(api: Api, name: str | None, version: str | None) -> Look:
    """Read it; what is no longer there gives way to what is.

    Raises:
        ApiError: nothing can be shown.
    """
    voices: list[Json] = (await api.get("/admin/adapters"))["adapters"]
    names = [voice["name"] for voice in voices]
    if not names:
        return Look(voices)
    voice = await api.get(f"/admin/adapters/{name if name in names else names[0]}")
    chosen = choose(voice, version)
    audit = await newest(api, *filter(None, (voice["name"], chosen)))
    if chosen is None:
        return Look(voices, voice, audit=audit)
    path = f"/admin/adapters/{voice['name']}/versions/{chosen.partition('@')[2]}"
    try:
        return Look(voices, voice, chosen, await api.get(path), audit=audit)
    except ApiError as error:
        return Look(voices, voice, chosen, problem=error.message, audit=audit)


def choose(voice: Json, version: str | None) -> str | None:
    """The version asked for if it is one of the voice's, else the one that answers most."""
    known = [one["version"] for one in all_versions(voice)]
    if version in known:
        return version
    answering = {one: share for one, share in shares(voice["rollout"]).items() if one in known}
    return max(answering, key=lambda one: answering[one]) if answering else next(iter(known), None)


async def newest(api: Api, *targets: str) -> list[Json]:
    """The audit log's last entries of all `targets` together."""
    found = await asyncio.gather(*(api.get("/admin/audit", target=one, limit=AUDIT_ENTRIES) for one in targets))
    entries = [entry for one in found for entry in one["entries"]]
    return sorted(entries, key=lambda entry: int(entry["id"]), reverse=True)[:AUDIT_ENTRIES]
