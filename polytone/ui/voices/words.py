"""Voices, their versions and the audit log, in words."""

from typing import Any

from ..api import Json
from ..markup import Html, joined, paragraph, table
from ..wording import minute, percent

NO_VOICES = (
    "No voice is published here yet. Train one (polytone train RECIPE) and publish it (polytone adapters publish "
    "VERSION), or upload one below."
)
STATES = {
    "published": "published; loaded when requested",
    "loading": "loading",
    "draining": "retiring: its last answers end",
    "retired": "retired; publish or upload it again to use it",
}
ACTIONS = {
    "publish": "published {}",
    "promote": "promoted a version of {}",
    "canary": "started a canary of {}",
    "rollout": "changed who answers for {}",
    "rollback": "rolled {} back",
    "remove_voice": "stopped answering for {}",
    "retire": "retired {}",
}


def shares(rollout: Json | None) -> dict[str, float]:
    """Version -> its share of the answers, without versions that answer none."""
    parts = (rollout or {}).get("versions") or []
    total = sum(part["weight"] for part in parts)
    return {part["version"]: part["weight"] / total for part in parts if part["weight"]} if total else {}


def rollout_words(rollout: Json | None) -> str:
    """The versions that answer, with their shares."""
    return (
        ", ".join(f"{version} {percent(share)}" for version, share in shares(rollout).items()) or "no version answers"
    )


def version_of(voice: Json, version: str) -> Json | None:
    return next((one for one in voice["versions"] if one["version"] == version), None)


def voices_table(voices: list[Json]) -> Html:
    """Every voice and the versions that answer for it."""
    if not voices:
        return paragraph(NO_VOICES, "empty")
    rows = [
        (voice["name"], rollout_words(voice["rollout"]), counted_states(voice["versions"]), generation_words(voice))
        for voice in voices
    ]
    return table("Voices", ("Voice", "Answered by", "Versions", "Rollout"), rows)


def counted_states(versions: list[Json]) -> str:
    counts: dict[str, int] = {}
    for one in versions:
        counts[one["state"]] = counts.get(one["state"], 0) + 1
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none"


def generation_words(voice: Json) -> str:
    return f"generation {voice['rollout']['generation']}" if voice["rollout"] else "none"


def voice_panel(voice: Json) -> Html:
    """One voice: the versions that answer, and all others."""
    now = f"{voice['name']}: {rollout_words(voice['rollout'])} ({generation_words(voice)} of the rollout)."
    if not voice["rollout"]:
        now = f"No version answers for {voice['name']}."
    rows = [(one["version"], share_words(voice, one["version"]), state_words(one)) for one in all_versions(voice)]
    versions = table(f"Versions of {voice['name']}", ("Version", "Share", "State on this server"), rows)
    return joined(paragraph(now, "lead"), paragraph(lag_words(voice), "hint") if lag_words(voice) else Html(), versions)


def lag_words(voice: Json) -> str:
    """A sentence about this server while it has not yet switched to the rollout; else empty."""
    here, rollout = voice["answers"], voice["rollout"]
    if rollout is None or (here or {}).get("generation") == rollout["generation"]:
        return ""
    now = f"still uses generation {here['generation']} ({rollout_words(here)})" if here else "answers for none"
    ready = f"until the versions of generation {rollout['generation']} are ready"
    return f"This server {now} {ready}. Press Refresh to check again."


def all_versions(voice: Json) -> list[Json]:
    """The published versions, and retired ones that answered before."""
    published = {one["version"] for one in voice["versions"]}
    answered = {part["version"] for rollout in voice.get("history") or [] for part in rollout["versions"]}
    retired: list[Json] = [{"version": one, "state": "retired", "reason": None} for one in sorted(answered - published)]
    return [*voice["versions"], *retired]


def share_words(voice: Json, version: str) -> str:
    share = shares(voice["rollout"]).get(version)
    return percent(share) if share is not None else "only under its own id"


def state_words(version: Json) -> str:
    """The state of a version, with its reason."""
    state, reason = str(version["state"]), str(version.get("reason") or "")
    if state == "ready":
        return "ready, loaded" if version.get("resident") else "ready, evicted: loaded again when requested"
    if state == "failed":
        return f"failed: {reason.rstrip('.') or 'the server gave no reason'}. The server tries again."
    return STATES.get(state, state) + (f" ({reason})" if reason else "")


def audit_table(of: str, entries: list[Json]) -> Html:
    """The audit log, newest first."""
    if not entries:
        return paragraph(f"No changes of {of} yet.", "empty")
    rows = [(minute(entry["at"]), entry["actor"], audit_words(entry)) for entry in entries]
    return table(f"Latest changes of {of}", ("Time (UTC)", "By", "Change"), rows)


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
    return rollout_words(value) if is_rollout(value) else "no version answers"


def forced_words(after: Any) -> str:
    """The failed gates of a forced change; else empty."""
    if not isinstance(after, dict) or not after.get("forced"):
        return ""
    failed = [f"{version} failed {', '.join(gates)}" for version, gates in (after.get("failed_gates") or {}).items()]
    return f"; by force: {'; '.join(failed) or 'failed gates'}"
