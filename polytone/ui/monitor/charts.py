"""The charts of the monitor: a colour for every version, explained by the table above them."""

from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from .activity import Activity, Row, counted_rows, measured_rows

HEIGHT = 240
DAY = 86_400
X_TITLE = "time, in your time zone"


@dataclass(frozen=True)
class Charts:
    requests: gr.BarPlot
    errors: gr.BarPlot
    median: gr.LinePlot
    slow: gr.LinePlot
    tokens: gr.BarPlot
    thumbs: gr.LinePlot

    @classmethod
    def build(cls) -> "Charts":
        with gr.Row(elem_classes="charts"):
            requests = chart(gr.BarPlot, "requests", "Requests")
            errors = chart(gr.BarPlot, "errors", "Errors")
        with gr.Row(elem_classes="charts"):
            median = chart(gr.LinePlot, "median", "First token, median")
            slow = chart(gr.LinePlot, "slow", "First token, 95th percentile")
        with gr.Row(elem_classes="charts"):
            tokens = chart(gr.BarPlot, "tokens", "Tokens, read and written")
            thumbs = chart(gr.LinePlot, "thumbs", "Thumbs up", [0, 100])
        return cls(requests, errors, median, slow, tokens, thumbs)

    @property
    def outputs(self) -> list[Any]:
        return [self.requests, self.errors, self.median, self.slow, self.tokens, self.thumbs]


def chart(kind: Any, name: str, title: str, limits: list[float | None] | None = None) -> Any:
    return kind(
        x="time",
        y="value",
        color="version",
        title=title,
        x_title=X_TITLE,
        y_lim=limits or [0, None],
        colors_in_legend=[],
        height=HEIGHT,
        visible=False,
        min_width=320,
        elem_id=f"chart-{name}",
    )


def drawn(activity: Activity) -> tuple[Any, ...]:
    """Values for `Charts.outputs`; charts with nothing to show are hidden."""
    step = f"in {activity.period.step_words}" if activity.period.step_words[0].isdigit() else "in a minute"
    return (
        bars(activity, f"requests {step}", "answers", "errors"),
        bars(activity, f"errors {step}", "errors"),
        lines(activity, "seconds after the request", "first_token_p50"),
        lines(activity, "seconds after the request", "first_token_p95"),
        bars(activity, f"tokens {step}", "prompt_tokens", "completion_tokens"),
        lines(activity, "% of the thumbs", "thumbs"),
    )


def nothing_drawn() -> tuple[Any, ...]:
    return tuple(gr.update(visible=False) for _ in fields(Charts))


def bars(activity: Activity, unit: str, *counted: str) -> Any:
    rows = counted_rows(activity, *counted)
    return gr.BarPlot(plotted(rows, "bar"), x_bin=f"{activity.period.step}s", **looks(activity, unit, rows))


def lines(activity: Activity, unit: str, field: str) -> Any:
    rows = measured_rows(activity, field)
    return gr.LinePlot(plotted(rows, "line"), **looks(activity, unit, rows))


def plotted(rows: list[Row], mark: str) -> dict[str, Any]:
    """Rows as Gradio's plots send them to the browser; its conversion of a DataFrame uses what pandas deprecates."""
    types = {"time": "temporal", "value": "quantitative", "version": "nominal"}
    return {"columns": list(types), "data": [list(row) for row in rows], "datatypes": types, "mark": mark}


def looks(activity: Activity, unit: str, rows: list[Row]) -> dict[str, Any]:
    limits = [activity.since.timestamp(), activity.until.timestamp()]
    clock = "%H:%M" if activity.period.seconds <= DAY else "%d %b"
    return {
        "y_title": unit,
        "x_axis_format": clock,
        "x_lim": limits,
        "color_map": activity.colours,
        "visible": bool(rows),
    }
