"""Changes to a voice, each with a sentence about its effect."""

import re
from typing import Any

from ..api import Json
from ..plan import Plan, PlanError, generation_of
from .words import rollout_words, shares, version_of

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
UNKNOWN = "Choose a voice first."


def promote(voice: Json | None, version: str | None) -> Plan:
    """One version answers everything."""
    known, chosen = both(voice, version)
    if shares(known["rollout"]) == {chosen: 1.0}:
        raise PlanError(f"{chosen} already answers 100 % of {known['name']}.")
    sentence = f"{chosen} will answer 100 % of {known['name']}. Now: {rollout_words(known['rollout'])}."
    parts = [{"version": chosen, "weight": 100}]
    return rollout(known, chosen, sentence, f"{chosen} now answers 100 % of {known['name']}.", parts)


def canary(voice: Json | None, version: str | None, percent: float | None) -> Plan:
    """One version answers a share; of the others, the one with the largest share answers the rest."""
    known, chosen = both(voice, version)
    if percent is None or percent != int(percent) or not 1 <= percent <= 99:
        raise PlanError("The canary's share is a whole number from 1 to 99 percent.")
    others = {one: share for one, share in shares(known["rollout"]).items() if one != chosen}
    if not others:
        raise PlanError(f"{known['name']} has no other version to share with. Promote one first.")
    stable, share = max(others, key=lambda one: others[one]), int(percent)
    dropped = [one for one in others if one != stable]
    loses = f" {' and '.join(dropped)} will answer nothing." if dropped else ""
    sentence = (
        f"{chosen} will answer {share} % of {known['name']}'s conversations, {stable} the other "
        f"{100 - share} %.{loses} Each conversation stays with its version. Now: {rollout_words(known['rollout'])}."
    )
    done = f"{chosen} now answers {share} % of {known['name']}, {stable} the other {100 - share} %."
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
    """A warning about a version that is not ready here."""
    known = version_of(voice, version)
    if known is None or known["state"] == "ready":
        return " Each server switches when the version is loaded and verified there." if known else ""
    if known["state"] == "failed":
        return f" Warning: it failed on this server ({known['reason']}). The current versions answer until it is ready."
    return f" It is {known['state']} on this server: the current versions answer until it is ready."


def roll_back(voice: Json | None) -> Plan:
    """Go back to the rollout that the server would choose."""
    known = named(voice)
    history = known.get("history") or []
    if not history:
        raise PlanError(f"{known['name']} never had a rollout to go back to.")
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
    """Retire a version."""
    known, chosen = both(voice, version)
    if chosen in shares(known["rollout"]):
        raise PlanError(f"{chosen} answers for {known['name']}. Promote another version first, or stop answering.")
    name, _, digest = chosen.partition("@")
    return Plan(
        f"Retires {chosen}: its running answers end, its memory is freed, and it no longer answers, not even under its "
        f"own id. Its files stay; publish or upload it again to use it.",
        f"{chosen} is retired.",
        "DELETE",
        f"/admin/adapters/{name}/versions/{digest}",
    )


def silence(voice: Json | None) -> Plan:
    """No version answers for the voice."""
    known = named(voice)
    if not known["rollout"]:
        raise PlanError(f"No version answers for {known['name']} already.")
    name = known["name"]
    return Plan(
        f"Stops answering for {name}: requests for {name} are refused until you promote a version or roll back. Its "
        f"versions still answer under their own ids. Now: {rollout_words(known['rollout'])}.",
        f"No version answers for {name} now.",
        "DELETE",
        f"/admin/adapters/{name}",
        seen=(name, generation_of(known)),
    )


def upload(name: str | None, file: str | None) -> Plan:
    """Upload a version, which does not answer for the voice yet."""
    voice = (name or "").strip()
    if not NAME.fullmatch(voice):
        raise PlanError("Enter the name of the voice: lower-case letters, digits, dots, dashes and underscores.")
    if not file:
        raise PlanError("Choose the .tar.gz of a version first. To make one: polytone adapters pack VERSION")
    return Plan(
        f"Uploads the archive. The server checks it and publishes it as a version of {voice}, which answers under its "
        f"own id. The rollout of {voice} does not change.",
        f"The version of {voice} is published. Choose it above to promote it.",
        "POST",
        f"/admin/adapters/{voice}/versions",
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
        raise PlanError(f"{version} is retired or unknown. Publish or upload it again to use it.")
    return known, str(version)
