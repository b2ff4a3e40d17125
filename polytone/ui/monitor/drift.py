"""Drift of versions, from GET /admin/drift, in words; the sentences about signals are the server's own."""

from ..api import Json
from ..markup import Html, joined, paragraph, table
from ..plan import Plan
from ..wording import counted, minute

STATES = {
    "drift": "changed",
    "ok": "no change",
    "insufficient_traffic": "too few conversations",
    "warming_up": "collecting its baseline",
    "no_reference": "no reference",
}
NOTHING = "No detectors yet: they start when the first conversation of a version is over."
NO_ALARM = "No active alarms."
HEADERS = ("Signal", "State", "Details")


def alarms_of(versions: list[Json]) -> list[Json]:
    """All active alarms, with version and signal, newest first."""
    alarms = [
        {**signal["alarm"], "version": version["version"], "signal": signal["signal"]}
        for version in versions
        for signal in version["signals"]
        if signal.get("alarm")
    ]
    return sorted(alarms, key=lambda alarm: str(alarm["at"]), reverse=True)


def alarm_panel(alarm: Json) -> Html:
    """An alarm: the change, its start, and examples."""
    times = [f"Raised {minute(alarm['at'])} UTC"]
    if alarm.get("since"):
        times.append(f"the change began about {minute(alarm['since'])} UTC")
    if alarm.get("conversations_since") is not None:
        times.append(f"{counted(alarm['conversations_since'], 'conversation')} before the alarm")
    examples = len(alarm.get("examples") or ())
    shown = (
        f" {counted(examples, 'answer')} that show it {'is' if examples == 1 else 'are'} in the review queue."
        if examples
        else ""
    )
    words = str(alarm.get("words") or "Something changed.")
    return joined(
        paragraph(f"{alarm['version']}: {signal_words(alarm['signal'])}", "lead"),
        paragraph(words[0].upper() + words[1:]),
        paragraph(f"{', '.join(times)}.{shown}", "hint"),
    )


def acknowledge(alarm: Json) -> Plan:
    """End an alarm."""
    version, signal = alarm["version"], alarm["signal"]
    return Plan(
        f"Ends the alarm on {signal_words(signal)} of {version}. Its detector restarts with the same baseline, without "
        "what it has observed, and raises another alarm if the change persists. The audit log will record it.",
        f"The alarm on {signal_words(signal)} of {version} is acknowledged; its detector has restarted.",
        "POST",
        f"/admin/drift/{version}/{signal}/acknowledge",
    )


def chance_words(versions: list[Json]) -> str:
    """The number of alarms expected by chance alone, and of active ones."""
    signals = [signal for version in versions for signal in version["signals"]]
    if not signals:
        return ""
    lengths = sorted({signal["run_length"] for signal in signals})
    run_length = f"{lengths[0]:,.0f}" if len(lengths) == 1 else f"{lengths[0]:,.0f} to {lengths[-1]:,.0f}"
    expected = sum(version["expected_chance_alarms"] for version in versions)
    return (
        f"By chance a signal raises at most one alarm in {run_length} conversations on average. Chance alone would "
        f"have raised about {expected:.2g} {'alarm' if expected == 1 else 'alarms'} in the "
        f"{counted(len(signals), 'detector')} shown here; {counted(len(alarms_of(versions)), 'active alarm')}."
    )


def drift_panel(versions: list[Json]) -> Html:
    """Every version with detectors, signal by signal; changed ones are open."""
    if not versions:
        return paragraph(NOTHING, "empty")
    return joined(paragraph(chance_words(versions), "hint"), *map(version_drift, versions))


def version_drift(version: Json) -> Html:
    state = STATES.get(version["state"], version["state"])
    rows = [
        (signal_words(one["signal"]), STATES.get(one["state"], one["state"]), one["words"])
        for one in version["signals"]
    ]
    opened = " open" if version["state"] == "drift" else ""
    signals = table(f"Signals of {version['version']}", HEADERS, rows)
    return Html("<details{}><summary>{}: {}</summary>{}</details>").format(opened, version["version"], state, signals)


def signal_words(signal: str) -> str:
    return signal.replace("_", " ")
