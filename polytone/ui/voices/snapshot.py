"""A snapshot of the server for the voices tab."""

import asyncio
from dataclasses import dataclass, field

from ..api import Api, ApiError, Json
from .words import all_versions, shares

AUDIT_ENTRIES = 20


@dataclass(frozen=True)
class Snapshot:
    """All voices, one of them with its history, and one of its versions; `problem` says why `details` are missing."""

    voices: list[Json]
    voice: Json | None = None
    version: str | None = None
    details: Json | None = None
    problem: str | None = None
    audit: list[Json] = field(default_factory=list)


async def read_snapshot(api: Api, name: str | None, version: str | None) -> Snapshot:
    """Read a snapshot, of another voice or version if those named do not exist any more.

    Raises:
        ApiError: the server refused everything.
    """
    voices: list[Json] = (await api.get("/admin/adapters"))["adapters"]
    names = [voice["name"] for voice in voices]
    if not names:
        return Snapshot(voices)
    voice = await api.get(f"/admin/adapters/{name if name in names else names[0]}")
    chosen = choose(voice, version)
    audit = await newest(api, *filter(None, (voice["name"], chosen)))
    if chosen is None:
        return Snapshot(voices, voice, audit=audit)
    path = f"/admin/adapters/{voice['name']}/versions/{chosen.partition('@')[2]}"
    try:
        return Snapshot(voices, voice, chosen, await api.get(path), audit=audit)
    except ApiError as error:
        return Snapshot(voices, voice, chosen, problem=error.message, audit=audit)


def choose(voice: Json, version: str | None) -> str | None:
    """`version` if the voice has it, else the one with the largest share."""
    versions = [one["version"] for one in all_versions(voice)]
    if version in versions:
        return version
    answering = {one: share for one, share in shares(voice["rollout"]).items() if one in versions}
    return max(answering, key=lambda one: answering[one]) if answering else next(iter(versions), None)


async def newest(api: Api, *targets: str) -> list[Json]:
    """The latest entries of the audit log on any of `targets`."""
    answers = await asyncio.gather(*(api.get("/admin/audit", target=one, limit=AUDIT_ENTRIES) for one in targets))
    entries = [entry for one in answers for entry in one["entries"]]
    return sorted(entries, key=lambda entry: int(entry["id"]), reverse=True)[:AUDIT_ENTRIES]
