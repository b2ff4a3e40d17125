"""Reports of drift: the state of every detector, in sentences and as JSON."""

from typing import Any

from sqlalchemy import or_, select

from polytone.contract.version_id import voice_of
from polytone.measure.signals import words_of
from polytone.serve.database.session import Database, reading
from polytone.serve.database.tables import DriftAlarmRow, DriftRow
from polytone.serve.traffic.names import require_name

from .detectors import ENOUGH, TWO_SIDED, WARM_UP, WARM_UP_OF, Detector, DriftStatus, ScalarDetector, detector_from_json
from .sequential import expected_chance_alarms, smallest_change

WITHIN = 500
SUBJECT = {
    "prompt_length": "questions are",
    "reply_length": "replies are",
    "cut_off": "replies are cut off",
    "empty": "replies are empty",
    "repetition": "replies repeat themselves",
    "refusal": "replies refuse",
    "language": "replies are in a language other than the voice's",
    "tone": "replies do not sound like this voice",
    "thumbs_down": "thumbs point down",
    "prompt_topics": "questions are about other topics than at first",
    "reply_topics": "replies are about other topics than at first",
}
SEVERITY = (
    DriftStatus.DRIFT,
    DriftStatus.OK,
    DriftStatus.INSUFFICIENT_TRAFFIC,
    DriftStatus.WARMING_UP,
    DriftStatus.NO_REFERENCE,
)


def report(database: Database, name: str | None = None) -> list[dict[str, Any]]:
    """Every version with a detector, or those that `name` names: its signals, active alarms, expected chance alarms.

    Blocks.

    Args:
        name: a version, or a voice for all its versions.

    Raises:
        NotFoundError: `version_not_found` or `voice_not_found`.
    """
    rows = select(DriftRow).order_by(DriftRow.version, DriftRow.signal)
    alarms = select(DriftAlarmRow).where(DriftAlarmRow.acknowledged_at.is_(None))
    with reading(database) as session:
        if name is not None:
            require_name(session, name, "version")
            rows, alarms = rows.where(named(DriftRow, name)), alarms.where(named(DriftAlarmRow, name))
        states = list(session.scalars(rows))
        active = {(alarm.version, alarm.signal): alarm for alarm in session.scalars(alarms)}
    versions: dict[str, list[dict[str, Any]]] = {}
    for row in states:
        signals = versions.setdefault(row.version, [])
        if (detector := detector_from_json(row.state)) is not None:
            signals.append(signal_json(detector, active.get((row.version, row.signal))))
    return [version_json(version, signals) for version, signals in versions.items() if signals]


def named(table: type[DriftRow | DriftAlarmRow], name: str) -> Any:
    return or_(table.version == name, table.version.startswith(f"{name}@", autoescape=True))


def version_json(version: str, signals: list[dict[str, Any]]) -> dict[str, Any]:
    expected = sum(expected_chance_alarms(one["observations"], one["run_length"]) for one in signals)
    states = {one["state"] for one in signals}
    return {
        "version": version,
        "adapter": voice_of(version),
        "state": next(status.value for status in SEVERITY if status.value in states),
        "expected_chance_alarms": round(expected, 4),
        "signals": signals,
    }


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
        "alarm": {"at": alarm.at.isoformat(), **alarm.details} if alarm else None,
    }


def sentence(detector: Detector) -> str:
    """The state of a detector for people."""
    match detector.status():
        case DriftStatus.NO_REFERENCE:
            return "Not observed: this needs a drift reference, and the version has none or too small a one."
        case DriftStatus.WARMING_UP:
            needed = WARM_UP_OF.get(detector.signal, WARM_UP)
            return f"Collecting a reference: {collected(detector)} of {needed} conversations."
        case DriftStatus.INSUFFICIENT_TRAFFIC:
            return f"{detector.seen.count} of the {ENOUGH} conversations needed before anything can be said."
        case DriftStatus.DRIFT:
            words = str(describe_change(detector)["words"])
            return words[0].upper() + words[1:]
    return f"No change in {conversations(detector.seen.count)}{sensitivity(detector)}."


def collected(detector: Detector) -> int:
    return len(detector.sample) if isinstance(detector, ScalarDetector) else detector.reference_rows


def sensitivity(detector: Detector) -> str:
    """The smallest change that would be noticed with the current settings."""
    if not isinstance(detector, ScalarDetector) or detector.above is None:
        return ""
    smallest = smallest_change(detector.above.mean, detector.above.run_length, WITHIN)
    if smallest is None:
        return f"; no change would be noticed within {WITHIN}"
    return f"; a rise to {in_units(detector, smallest)} would be noticed within {WITHIN} with 80 % probability"


def describe_change(detector: Detector) -> dict[str, Any]:
    """What changed, since when, and how often chance alone raises such an alarm."""
    since = detector.since or 1
    ago = detector.seen.count - since + 1
    when = detector.seen.when(since)
    began = f"since about {conversations(ago)} ago" + (f" ({when[:16].replace('T', ' ')} UTC)" if when else "")
    chance = f"chance alone raises such an alarm once in {detector.run_length:,.0f} conversations or more rarely"
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
    return f"{subject} {direction}: {recent}, in the reference {before}"


def mean_since(detector: ScalarDetector) -> float:
    """The mean since the change, or of the last conversations."""
    count = detector.seen.count - detector.since + 1 if detector.since else len(detector.recent)
    values = detector.recent[-max(1, count) :]
    return sum(values) / len(values) if values else 0.0


def in_units(detector: ScalarDetector, value: float) -> str:
    if detector.signal not in TWO_SIDED:
        return f"{100 * value:.1f} %"
    words = round(words_of(value))
    return f"about {words} {'word' if words == 1 else 'words'}"


def conversations(count: int) -> str:
    return f"{count} conversation{'' if count == 1 else 's'}"
