"""What the detectors say, in words and as JSON."""

from typing import Any

from sqlalchemy import select

from polytone.contract.version_id import voice_of
from polytone.measure.signals import words_of
from polytone.serve.database.session import Database, reading
from polytone.serve.database.tables import DriftAlarmRow, DriftRow

from .detectors import ENOUGH, TWO_SIDED, WARM_UP, WARM_UP_OF, Detector, DriftStatus, ScalarDetector, detector_from_json
from .sequential import SequentialTest, expected_chance_alarms, smallest_change

WITHIN = 500
SUBJECT = {
    "prompt_length": "questions are",
    "reply_length": "replies are",
    "cut_off": "replies are cut off",
    "empty": "replies are empty",
    "repetition": "replies repeat themselves",
    "refusal": "replies refuse",
    "language": "replies are in another language than the voice's",
    "tone": "replies do not sound like this voice",
    "thumbs_down": "thumbs go down",
    "prompt_topics": "questions are about other things than at first",
    "reply_topics": "replies say other things than at first",
}


def describe_change(detector: Detector) -> dict[str, Any]:
    """What changed, since when, and how often a thing like this comes by chance."""
    since = detector.since or 1
    ago = detector.seen.count - since + 1
    when = detector.seen.when(since)
    began = f"since about {ago} conversations ago" + (f" ({when[:16].replace('T', ' ')} UTC)" if when else "")
    chance = f"by chance an alarm like this comes once in {detector.run_length:,.0f} conversations or more rarely"
    return {
        "words": f"{change(detector)}, {began}; {chance}.",
        "since": when,
        "conversations_since": ago,
    }


def change(detector: Detector) -> str:
    subject = SUBJECT.get(detector.signal, detector.signal)
    if not isinstance(detector, ScalarDetector):
        return f"{subject} (p = {detector.statistic:.4f})"
    direction = "more often" if detector.signal not in TWO_SIDED else "longer" if detector.rose else "shorter"
    recent, before = in_units(detector, mean_since(detector)), in_units(detector, detector.reference_mean)
    return f"{subject} {direction}: {recent}, the reference has {before}"


def mean_since(detector: ScalarDetector) -> float:
    """The mean since the change, or of the last conversations."""
    count = detector.seen.count - detector.since + 1 if detector.since else len(detector.recent)
    values = detector.recent[-max(1, count) :]
    return sum(values) / len(values) if values else 0.0


def in_units(detector: ScalarDetector, value: float) -> str:
    return f"about {words_of(value):.0f} words" if detector.signal in TWO_SIDED else f"{100 * value:.1f} %"


def sentence(detector: Detector) -> str:
    """How a detector stands, for people."""
    match detector.status():
        case DriftStatus.WARMING_UP:
            there, wanted = collected(detector), WARM_UP_OF.get(detector.signal, WARM_UP)
            return f"{there} of the {wanted} conversations that will be its reference."
        case DriftStatus.INSUFFICIENT_TRAFFIC:
            return f"{detector.seen.count} conversations so far; something is said from {ENOUGH} on."
        case DriftStatus.DRIFT:
            words = str(describe_change(detector)["words"])
            return words[0].upper() + words[1:]
    return f"No change in {detector.seen.count} conversations{smallest(detector)}."


def collected(detector: Detector) -> int:
    return len(detector.sample) if isinstance(detector, ScalarDetector) else detector.reference_rows


def smallest(detector: Detector) -> str:
    """What would be seen at the current settings."""
    if not isinstance(detector, ScalarDetector) or detector.above is None:
        return ""
    least = smallest_rate(detector.above)
    if least is None:
        return f"; no change would be noticed within {WITHIN}"
    return f"; a rise to {in_units(detector, least)} would be noticed within {WITHIN} with 80 % probability"


def smallest_rate(detector: SequentialTest) -> float | None:
    return smallest_change(detector.mean, detector.run_length, WITHIN)


def report(database: Database, version: str | None = None) -> list[dict[str, Any]]:
    """Every watched version, or one: its signals, standing alarms, and how many alarms chance would raise. Blocks."""
    with reading(database) as session:
        rows = select(DriftRow).order_by(DriftRow.version, DriftRow.signal)
        alarms = select(DriftAlarmRow).where(DriftAlarmRow.acknowledged_at.is_(None))
        if version is not None:
            rows, alarms = rows.where(DriftRow.version == version), alarms.where(DriftAlarmRow.version == version)
        states = list(session.scalars(rows))
        active = {(alarm.version, alarm.signal): alarm for alarm in session.scalars(alarms)}
    found: dict[str, list[dict[str, Any]]] = {}
    for row in states:
        signals = found.setdefault(row.version, [])
        if (detector := detector_from_json(row.state)) is not None:
            signals.append(signal_json(detector, active.get((row.version, row.signal))))
    return [version_json(name, signals) for name, signals in found.items() if signals]


def version_json(version: str, signals: list[dict[str, Any]]) -> dict[str, Any]:
    by_chance = sum(expected_chance_alarms(one["observations"], one["run_length"]) for one in signals)
    return {
        "version": version,
        "adapter": voice_of(version),
        "state": worst(signals),
        "expected_chance_alarms": round(by_chance, 4),
        "signals": signals,
    }


def worst(signals: list[dict[str, Any]]) -> str:
    order = [
        DriftStatus.DRIFT,
        DriftStatus.OK,
        DriftStatus.INSUFFICIENT_TRAFFIC,
        DriftStatus.WARMING_UP,
        DriftStatus.NO_REFERENCE,
    ]
    there = {one["state"] for one in signals}
    return next((state.value for state in order if state.value in there), DriftStatus.NO_REFERENCE.value)


def signal_json(detector: Detector, alarm: DriftAlarmRow | None) -> dict[str, Any]:
    scalar = detector if isinstance(detector, ScalarDetector) else None
    return {
        "signal": detector.signal,
        "state": detector.status().value,
        "words": sentence(detector),
        "observations": detector.seen.count,
        "reference_rows": detector.reference_rows,
        "reference_mean": scalar.reference_mean if scalar else None,
        "recent_mean": mean_since(scalar) if scalar and scalar.recent else None,
        "statistic": detector.statistic,
        "run_length": detector.run_length,
        "alarm": alarm_json(alarm) if alarm else None,
    }


def alarm_json(alarm: DriftAlarmRow) -> dict[str, Any]:
    return {"at": alarm.at.isoformat(), **alarm.details}
