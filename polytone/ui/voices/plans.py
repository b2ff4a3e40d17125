"""What can be done with a voice, said before it is done."""

import re
from typing import Any

from ..api import Json
from ..plan import Plan, PlanError, generation_of
from .words import rollout_words, shares, version_of

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
UNKNOWN = "Choose a voice first."


def promote(voice: Json | None, version: str | None) -> Plan:
    """Let one version answer all."""
    known, chosen = both(voice, version)
    if shares(known["rollout"]) == {chosen: 1.0}:
        raise PlanError(f"{chosen} answers 100 % of {known['name']} already.")
    sentence = f"Lets {chosen} answer 100 % of {known['name']}. Now: {rollout_words(known['rollout'])}."
    parts = [{"version": chosen, "weight": 100}]
    return rollout(known, chosen, sentence, f"{chosen} is to answer 100 % of {known['name']}.", parts)


def canary(voice: Json | None, version: str | None, percent: float | None) -> Plan:
    """Let one version answer a share; the one that answers most of the rest keeps what is left."""
    known, chosen = both(voice, version)
    if percent is None or percent != int(percent) or not 1 <= percent <= 99:
        raise PlanError("The canary's share is a whole number from 1 to 99 percent.")
    others = {one: share for one, share in shares(known["rollout"]).items() if one != chosen}
    if not others:
        raise PlanError(f"{known['name']} has no other version to share with. Promote one first.")
    stable, share = max(others, key=lambda one: others[one]), int(percent)
    dropped = [one for one in others if one != stable]
    loses = f" {' and '.join(dropped)} will answer none of it." if dropped else ""
    sentence = (
        f"Lets {chosen} answer {share} % of {known['name']}'s conversations; {stable} answers the other "
        f"{100 - share} %.{loses} A conversation stays with its version. Now: {rollout_words(known['rollout'])}."
    )
    done = f"{chosen} is to answer {share} % of {known['name']}, {stable} the other {100 - share} %."
    parts = [{"version": stable, "weight": 100 - share}, {"version": chosen, "weight": share}]
    return rollout(known, chosen, sentence, done, parts)


def rollout(voice: Json, version: str, sentence: str, done: str, parts: list[Json]) -> Plan:
    path, body = f"/admin/adapters/{voice['name']}/rollout", {"versions": parts, "generation": generation_of(voice)}
    forced = Plan(
        f"{sentence} It failed gates of its evaluation; the audit log will say that you forced it.",
        f"{done} It was forced, and the audit log says so.",
        "PUT",
        path,
        {**body, "force": True},
    )
    return Plan(f"{sentence}{caution(voice, version)}", done, "PUT", path, body, anyway=forced)


def caution(voice: Json, version: str) -> str:
    """What is to be known of a version that is not ready here."""
    found = version_of(voice, version)
    if found is None or found["state"] == "ready":
        return " The servers switch as soon as it is loaded and proven there." if found else ""
    if found["state"] == "failed":
        return f" Beware: it failed on this server ({found['reason']}). Until it is ready, who answers now goes on."
    return f" It is {found['state']} on this server: until it is ready, who answers now goes on."


def roll_back(voice: Json | None) -> Plan:
    """Go back to the rollout that the server would go back to."""
    known = named(voice)
    history = known.get("history") or []
    if not history:
        raise PlanError(f"{known['name']} never had a rollout, so there is none to go back to.")
    target = next((one for one in history if one["generation"] == history[0].get("previous")), None)
    if target is None:
        raise PlanError(f"{known['name']} has no earlier rollout to go back to.")
    then, now = rollout_words(target), rollout_words(known["rollout"])
    return Plan(
        f"Goes back to generation {target['generation']} of {known['name']}: {then}. Now: {now}.",
        f"{known['name']} went back: {then}.",
        "POST",
        f"/admin/adapters/{known['name']}/rollback",
        {"generation": generation_of(known)},
    )


def retire(voice: Json | None, version: str | None) -> Plan:
    """Let a version go."""
    known, chosen = both(voice, version)
    if chosen in shares(known["rollout"]):
        raise PlanError(f"{chosen} answers for {known['name']}. Promote another version first, or let nobody answer.")
    name, _, digest = chosen.partition("@")
    return Plan(
        f"Retires {chosen}: its running answers end, its memory is freed, and it answers no more, under its own id "
        f"either. Its files stay; uploading or publishing it again brings it back.",
        f"{chosen} is retired.",
        "DELETE",
        f"/admin/adapters/{name}/versions/{digest}",
    )


def silence(voice: Json | None) -> Plan:
    """Let nobody answer."""
    known = named(voice)
    if not known["rollout"]:
        raise PlanError(f"Nobody answers for {known['name']} as it is.")
    name = known["name"]
    return Plan(
        f"Lets nobody answer for {name}: whoever asks for {name} is refused until a version is promoted or you roll "
        f"back. Its versions still answer under their own ids. Now: {rollout_words(known['rollout'])}.",
        f"Nobody answers for {name} now.",
        "DELETE",
        f"/admin/adapters/{name}",
        seen=(name, generation_of(known)),
    )


def upload(name: str | None, file: str | None) -> Plan:
    """Send a version in; nobody is answered by it yet."""
    wanted = (name or "").strip()
    if not NAME.fullmatch(wanted):
        raise PlanError("Name the voice that the version is of: small letters, digits, dots and dashes.")
    if not file:
        raise PlanError("Choose the .tar.gz of a version first. Make one with: polytone adapters pack VERSION")
    return Plan(
        f"Sends the archive to the server, which checks it and publishes it as a version of {wanted}. It will answer "
        f"under its own id. Who answers for {wanted} does not change.",
        f"The version of {wanted} is published. Choose it above to let it answer.",
        "POST",
        f"/admin/adapters/{wanted}/versions",
        file=file,
    )


def named(voice: Json | None) -> Json:
    if not voice:
        raise PlanError(UNKNOWN)
    return voice


def both(voice: Json | None, version: Any) -> tuple[Json, str]:
    known = named(voice)
    if not version:
        raise PlanError("Choose a version first.")
    if version_of(known, str(version)) is None:
        raise PlanError(f"{version} is retired or unknown. Upload or publish it again to use it.")
    return known, str(version)
