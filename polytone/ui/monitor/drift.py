"""What GET /admin/drift says of versions, in words; the sentences on single signals are the server's own."""

from datetime import datetime
from typing import Any

from ..api import Json
from ..markup import Safe, escaped, joined, paragraph, table
from ..plan import Plan, counted

STATES = {
    "drift": "changed",
    "ok": "no change",
    "insufficient_traffic": "too few conversations to say",
    "warming_up": "collecting its reference",
    "no_reference": "no reference",
}
NOTHING = "No version is watched yet: a detector starts with the first conversation of a version that is over."
NO_ALARM = "No alarm stands."
HEADERS = ("Signal", "State", "In words")


def alarms_of(versions: list[Json]) -> list[Json]:
    """Every alarm that stands, with its version and signal, newest first."""
    found = [
        {**signal["alarm"], "version": version["version"], "signal": signal["signal"]}
        for version in versions
        for signal in version["signals"]
        if signal.get("alarm")
    ]
    return sorted(found, key=lambda alarm: str(alarm["at"]), reverse=True)


def alarm_panel(alarm: Json) -> Safe:
    """What changed, since when and how sure that is."""
    said = [f"Raised {moment(alarm['at'])}"]
    if alarm.get("since"):
        said.append(f"the change began about {moment(alarm['since'])}")
    if alarm.get("conversations_since") is not None:
        said.append(f"{counted(alarm['conversations_since'], 'conversation')} before the alarm")
    examples = len(alarm.get("examples") or ())
    shown = f" {counted(examples, 'answer')} that show it wait in the review queue." if examples else ""
    words = str(alarm.get("words") or "Something changed.")
    return joined(
        paragraph(f"{alarm['version']}: {signal_words(alarm['signal'])}", "lead"),
        paragraph(words[0].upper() + words[1:]),
        paragraph(f"{', '.join(said)}.{shown}", "hint"),
    )


def acknowledge(alarm: Json) -> Plan:
    """End an alarm."""
    version, signal = alarm["version"], alarm["signal"]
    return Plan(
        f"Ends the alarm on {signal_words(signal)} of {version}. Its detector starts anew against the same reference: "
        "what it saw is forgotten, and if the change goes on it alarms again. The audit log will say who did it.",
        f"The alarm on {signal_words(signal)} of {version} is acknowledged; its detector starts anew.",
        "POST",
        f"/admin/drift/{version}/{signal}/acknowledge",
    )


def chance_words(versions: list[Json]) -> str:
    """How many alarms chance alone would have raised, beside those that stand."""
    signals = [signal for version in versions for signal in version["signals"]]
    if not signals:
        return ""
    lengths = sorted({signal["run_length"] for signal in signals})
    stated = f"{lengths[0]:,.0f}" if len(lengths) == 1 else f"{lengths[0]:,.0f} to {lengths[-1]:,.0f}"
    expected = sum(version["expected_chance_alarms"] for version in versions)
    return (
        f"Each signal alarms by chance once in {stated} conversations on average at most. Of what the "
        f"{counted(len(signals), 'detector')} shown here saw since they began, chance alone would raise about "
        f"{expected:.2g} {'alarm' if expected == 1 else 'alarms'}; {counted(len(alarms_of(versions)), 'alarm')} "
        f"{'stands' if len(alarms_of(versions)) == 1 else 'stand'}."
    )


def drift_panel(versions: list[Json]) -> Safe:
    """Every watched version, signal by signal; the changed ones are open."""
    if not versions:
        return paragraph(NOTHING, "empty")
    return joined(paragraph(chance_words(versions), "hint"), *map(version_drift, versions))


def version_drift(version: Json) -> Safe:
    state = STATES.get(version["state"], version["state"])
    rows = [
        (signal_words(one["signal"]), STATES.get(one["state"], one["state"]), one["words"])
        for one in version["signals"]
    ]
    opened = " open" if version["state"] == "drift" else ""
    summary = escaped(f"{version['version']}: {state}")
    signals = table(f"Signals of {version['version']}", HEADERS, rows)
    return Safe(f"<details{opened}><summary>{summary}</summary>{signals}</details>")


def signal_words(signal: str) -> str:
    return signal.replace("_", " ")


def moment(text: Any) -> str:
    """A time as the server gives it, to the minute."""
    try:
        return f"{datetime.fromisoformat(str(text)):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return str(text)
