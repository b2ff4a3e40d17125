"""Voices, their versions and what was done to them, in words."""

from datetime import datetime
from typing import Any

from ..api import Json
from ..markup import Safe, joined, paragraph, table

NO_VOICES = (
    "No voice is published here yet. Train one (polytone train RECIPE) and publish it (polytone adapters publish "
    "VERSION), or upload one below."
)
STATES = {
    "published": "published; it is loaded when it is asked for",
    "loading": "loading",
    "draining": "being retired: its last answers end",
    "retired": "retired; upload or publish it again to use it",
}
ACTIONS = {
    "publish": "published {}",
    "promote": "promoted a version of {}",
    "canary": "started a canary of {}",
    "rollout": "changed who answers for {}",
    "rollback": "rolled {} back",
    "remove_voice": "let nobody answer for {}",
    "retire": "retired {}",
}


def shares(rollout: Json | None) -> dict[str, float]:
    """Version -> the share it answers, of those that answer at all."""
    parts = (rollout or {}).get("versions") or []
    total = sum(part["weight"] for part in parts)
    return {part["version"]: part["weight"] / total for part in parts if part["weight"]} if total else {}


def rollout_words(rollout: Json | None) -> str:
    """Who answers."""
    return ", ".join(f"{version} {percent(share)}" for version, share in shares(rollout).items()) or "nobody answers"


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def version_of(voice: Json, version: str) -> Json | None:
    return next((one for one in voice["versions"] if one["version"] == version), None)


def voices_table(voices: list[Json]) -> Safe:
    """Every voice and who answers for it."""
    if not voices:
        return paragraph(NO_VOICES, "empty")
    rows = [
        (voice["name"], rollout_words(voice["rollout"]), counted_states(voice["versions"]), generation_words(voice))
        for voice in voices
    ]
    return table("Voices", ("Voice", "Who answers", "Versions", "Rollout"), rows)


def counted_states(versions: list[Json]) -> str:
    counts: dict[str, int] = {}
    for one in versions:
        counts[one["state"]] = counts.get(one["state"], 0) + 1
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none"


def generation_words(voice: Json) -> str:
    return f"generation {voice['rollout']['generation']}" if voice["rollout"] else "none"


def voice_panel(voice: Json) -> Safe:
    """One voice: who answers, and each of its versions."""
    now = f"{voice['name']}: {rollout_words(voice['rollout'])} ({generation_words(voice)} of the rollout)."
    if not voice["rollout"]:
        now = f"Nobody answers for {voice['name']}."
    rows = [(one["version"], share_words(voice, one["version"]), state_words(one)) for one in all_versions(voice)]
    versions = table(f"Versions of {voice['name']}", ("Version", "Answers", "State on this server"), rows)
    return joined(paragraph(now, "lead"), paragraph(late(voice), "hint") if late(voice) else Safe(), versions)


def late(voice: Json) -> str:
    """What this server does until it has followed the rollout."""
    here, wanted = voice["answers"], voice["rollout"]
    if wanted is None or (here or {}).get("generation") == wanted["generation"]:
        return ""
    now = f"goes on with generation {here['generation']} ({rollout_words(here)})" if here else "has nobody answer"
    ready = f"until the versions of generation {wanted['generation']} are ready"
    return f"This server {now} {ready}. Refresh to look again."


def all_versions(voice: Json) -> list[Json]:
    """The published versions, and those that answered once and were retired since."""
    known = {one["version"] for one in voice["versions"]}
    once = {part["version"] for rollout in voice.get("history") or [] for part in rollout["versions"]}
    retired: list[Json] = [{"version": one, "state": "retired", "reason": None} for one in sorted(once - known)]
    return [*voice["versions"], *retired]


def share_words(voice: Json, version: str) -> str:
    share = shares(voice["rollout"]).get(version)
    return percent(share) if share is not None else "under its own id only"


def state_words(version: Json) -> str:
    """How a version stands, and why."""
    state, reason = str(version["state"]), str(version.get("reason") or "")
    if state == "ready":
        return "ready, in memory" if version.get("resident") else "ready, asleep: loaded again when it is asked for"
    if state == "failed":
        return f"failed: {reason.rstrip('.') or 'the server gave no reason'}. It is tried again by itself."
    return STATES.get(state, state) + (f" ({reason})" if reason else "")


def audit_table(of: str, entries: list[Json]) -> Safe:
    """Who did what, newest first."""
    if not entries:
        return paragraph(f"Nothing was changed yet: {of}.", "empty")
    rows = [(moment(entry["at"]), entry["actor"], audit_words(entry)) for entry in entries]
    return table(f"Last changes: {of}", ("When (UTC)", "Who", "What"), rows)


def audit_words(entry: Json) -> str:
    """One line of the audit log as a sentence."""
    before, after = entry.get("before"), entry.get("after")
    words = ACTIONS.get(entry["action"], f"{entry['action']}: {{}}").replace("{}", str(entry["target"]))
    if is_rollout(before) or is_rollout(after):
        words += f": from {state_of(before)} to {state_of(after)}"
    return f"{words}{forced_words(after)}."


def is_rollout(value: Any) -> bool:
    return isinstance(value, dict) and "versions" in value


def state_of(value: Any) -> str:
    return rollout_words(value) if is_rollout(value) else "nobody answers"


def forced_words(after: Any) -> str:
    """That someone passed over gates, and over which."""
    if not isinstance(after, dict) or not after.get("forced"):
        return ""
    failed = [f"{version} failed {', '.join(gates)}" for version, gates in (after.get("failed_gates") or {}).items()]
    return f"; by force: {'; '.join(failed) or 'gates had failed'}"


def moment(text: str) -> str:
    """A time as the server gives it, to the minute."""
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M}"
    except ValueError:
        return text
