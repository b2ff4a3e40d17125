"""Traffic over time, from GET /admin/activity: totals in words, and series for charts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from ..api import Api, Json
from ..markup import Html, joined, paragraph, table

Row: TypeAlias = tuple[float, float | None, str]  # milliseconds since 1970, a number, a version

DRAWN = 8
COLOURS = ("#0d9488", "#ea7317", "#7c6cf0", "#d6498b", "#2f86d6", "#5f9e2f", "#b8901a", "#7d8590")  # on light and dark
CUT = "There are more answers than the server counts at once, so only the newest are counted. Choose a shorter period."
HEADERS = (
    "Version",
    "Answers",
    "Errors",
    "Tokens read",
    "Tokens written",
    "First token, median",
    "First token, 95 %",
    "Thumbs",
)


@dataclass(frozen=True)
class Period:
    """A period up to now, in steps of `step` seconds."""

    label: str
    seconds: int
    step: int
    step_words: str


PERIODS = (
    Period("hour", 3_600, 60, "minute"),
    Period("24 hours", 86_400, 1_800, "30 minutes"),
    Period("7 days", 7 * 86_400, 7_200, "2 hours"),
    Period("30 days", 30 * 86_400, 43_200, "12 hours"),
)


@dataclass(frozen=True)
class Activity:
    """Totals of versions, busiest first, and their series; `cut` if the server counted only the newest answers."""

    period: Period
    since: datetime
    until: datetime
    totals: list[Json]
    series: list[Json]
    cut: bool = False

    def of(self, voice: str | None) -> "Activity":
        """The activity of one voice, or of all."""
        return replace(self, totals=of_voice(self.totals, voice), series=of_voice(self.series, voice))

    @property
    def drawn(self) -> list[Json]:
        """The series that the charts have colours for, in the order of the totals."""
        by_version = {one["version"]: one for one in self.series}
        return [by_version[one["version"]] for one in self.totals[:DRAWN] if one["version"] in by_version]

    @property
    def colours(self) -> dict[str, str]:
        return dict(zip((one["version"] for one in self.drawn), COLOURS, strict=False))


async def read_activity(api: Api, period: Period, now: datetime | None = None) -> Activity:
    """The server counts twice: over the whole period, so that medians are medians, and step by step."""
    since, until = window(period, now or datetime.now(UTC))
    period_of = {"since": since.isoformat(), "until": until.isoformat()}
    whole = await api.get("/admin/activity", **period_of, buckets=1)
    steps = await api.get("/admin/activity", **period_of, buckets=period.seconds // period.step)
    totals = sorted(map(total_of, whole["versions"]), key=requests_of, reverse=True)
    return Activity(period, since, until, totals, steps["versions"], bool(whole.get("cut")))


def window(period: Period, now: datetime) -> tuple[datetime, datetime]:
    """Whole steps, the current one included."""
    until = datetime.fromtimestamp((now.timestamp() // period.step + 1) * period.step, UTC)
    return until - timedelta(seconds=period.seconds), until


def of_voice(versions: list[Json], voice: str | None) -> list[Json]:
    return [one for one in versions if voice is None or one["adapter"] == voice]


def total_of(version: Json) -> Json:
    """The only bucket of a version; an empty one if nothing happened."""
    point: Json = next(iter(version["points"]), {})
    return {"version": version["version"], "adapter": version["adapter"], "answers": 0, **point}


def totals_table(activity: Activity) -> Html:
    """Traffic by version; its colours are the legend of the charts."""
    if not activity.totals:
        return paragraph(f"No requests in the last {activity.period.label}.", "empty")
    colours, rows = activity.colours, []
    for one in activity.totals:
        rows.append(
            (
                chip(one["version"], colours.get(one["version"])),
                f"{one['answers']:,}",
                errors_words(one),
                f"{one.get('prompt_tokens') or 0:,}",
                f"{one.get('completion_tokens') or 0:,}",
                seconds_words(one.get("first_token_p50")),
                seconds_words(one.get("first_token_p95")),
                thumbs_words(one),
            )
        )
    totals = table(f"The last {activity.period.label} by version", HEADERS, rows)
    return joined(paragraph(CUT, "hint"), totals) if activity.cut else totals


def chip(version: str, colour: str | None) -> Html:
    if colour is None:
        return Html("{} <small>(not drawn)</small>").format(version)
    return Html('<span class="chip" style="background:{}" aria-hidden="true"></span>{}').format(colour, version)


def errors_words(point: Json) -> str:
    errors = point.get("errors") or 0
    return f"{errors:,} ({100 * errors / requests_of(point):.1f} %)" if errors else "0"


def requests_of(point: Json) -> int:
    return int((point.get("answers") or 0) + (point.get("errors") or 0))


def seconds_words(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{1000 * seconds:.0f} ms" if seconds < 0.995 else f"{seconds:.3g} s"


def thumbs_words(point: Json) -> str:
    up, down = point.get("thumbs_up") or 0, point.get("thumbs_down") or 0
    return f"{up:,} up, {down:,} down ({100 * up / (up + down):.0f} % up)" if up + down else "none"


def counted_rows(activity: Activity, *fields: str) -> list[Row]:
    """The sum of `fields` in each step, for bars."""
    rows = [
        (
            milliseconds(datetime.fromisoformat(point["at"])),
            sum(point.get(one) or 0 for one in fields),
            series["version"],
        )
        for series in activity.drawn
        for point in series["points"]
    ]
    return [row for row in rows if row[1]]


def measured_rows(activity: Activity, field: str) -> list[Row]:
    """A number in each step, for lines: constant over the step, with a gap where there is none."""
    return [row for series in activity.drawn for row in levels(activity, series, field)]


def levels(activity: Activity, series: Json, field: str) -> Iterator[Row]:
    step, before = timedelta(seconds=activity.period.step), None
    for point in series["points"]:
        value = value_of(point, field)
        if value is None:
            continue
        start = datetime.fromisoformat(point["at"])
        if before is not None and start > before:
            yield milliseconds(before), None, series["version"]
        before = start + step
        yield milliseconds(start), value, series["version"]
        yield milliseconds(before), value, series["version"]


def value_of(point: Json, field: str) -> float | None:
    """A field, or the share of thumbs up, in percent."""
    if field != "thumbs":
        value = point.get(field)
        return None if value is None else float(value)
    up, down = point.get("thumbs_up") or 0, point.get("thumbs_down") or 0
    return 100 * up / (up + down) if up + down else None


def milliseconds(at: datetime) -> float:
    return 1000 * at.timestamp()
