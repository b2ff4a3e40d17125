"""The monitor tab: health, traffic over time, drift and alarms."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

import gradio as gr

from ..api import Api, ApiError, Json
from ..markup import failure, heading, paragraph
from ..shell import LATEST, QUIET, Shell, error_text
from .activity import PERIODS, Activity, of_voice, read_activity, totals_table
from .alarms import Alarms
from .charts import Charts, drawn, nothing_drawn
from .drift import alarms_of, drift_panel
from .health import read_health

T = TypeVar("T")
EVERY_SECONDS = 30
ALL = "all voices"
LOADING = "Loading."


def monitor_tab(shell: Shell, page: gr.Blocks, tab: gr.Tab) -> None:
    choosing = Choosing.build()
    gr.HTML(heading("Alarms"))
    alarms = Alarms.build()
    gr.HTML(heading("Traffic"))
    totals = gr.HTML(elem_id="totals")
    charts = Charts.build()
    gr.HTML(heading("Drift"))
    drift = gr.HTML(elem_id="drift")
    view = MonitorView(choosing, alarms, totals, charts, drift)
    view.wire(shell, tab)


@dataclass(frozen=True)
class Choosing:
    health: gr.HTML
    voice: gr.Dropdown
    period: gr.Dropdown
    often: gr.Checkbox
    refresh: gr.Button
    timer: gr.Timer

    @classmethod
    def build(cls) -> "Choosing":
        health = gr.HTML(paragraph(LOADING, "empty"), elem_id="health")
        with gr.Row(elem_classes="choosing"):
            voice = gr.Dropdown(label="Voice", choices=[ALL], value=ALL, interactive=True, min_width=180)
            labels = [period.label for period in PERIODS]
            period = gr.Dropdown(label="Period", choices=labels, value=labels[1], interactive=True, min_width=140)
            often = gr.Checkbox(label=f"Refresh every {EVERY_SECONDS} seconds", min_width=180)
            refresh = gr.Button("Refresh", scale=0, min_width=120)
        return cls(health, voice, period, often, refresh, gr.Timer(EVERY_SECONDS, active=False))


@dataclass(frozen=True)
class MonitorView:
    choosing: Choosing
    alarms: Alarms
    totals: gr.HTML
    charts: Charts
    drift: gr.HTML

    def wire(self, shell: Shell, tab: gr.Tab) -> None:
        async def show(key: str, voice: str | None, period: str | None) -> tuple[Any, ...]:
            return shown(await read_all(shell.api(key), period), voice)

        top = self.choosing
        outputs = [top.health, top.voice, self.alarms.active, self.totals, self.drift, *self.charts.outputs]
        chosen = [shell.admin, top.voice, top.period]
        moments = [tab.select, top.refresh.click, top.voice.input, top.period.input, shell.admin.submit, top.timer.tick]
        gr.on(moments, show, chosen, outputs, show_progress="minimal", **LATEST)
        self.alarms.wire(shell).then(show, chosen, outputs, **QUIET)
        top.often.input(lambda on: gr.Timer(active=on), top.often, top.timer, **QUIET)


@dataclass(frozen=True)
class Readings:
    """What the server reported; each part may have been refused on its own."""

    health: str
    voices: list[Json] | ApiError
    activity: Activity | ApiError
    drift: list[Json] | ApiError


async def read_all(api: Api, label: str | None) -> Readings:
    period = next((one for one in PERIODS if one.label == label), PERIODS[1])
    health, voices, activity, drift = await asyncio.gather(
        read_health(api),
        tried(api.get("/admin/adapters")),
        tried(read_activity(api, period)),
        tried(api.get("/admin/drift")),
    )
    return Readings(
        health,
        voices if isinstance(voices, ApiError) else voices["adapters"],
        activity,
        drift if isinstance(drift, ApiError) else drift["versions"],
    )


async def tried(call: Awaitable[T]) -> T | ApiError:
    try:
        return await call
    except ApiError as error:
        return error


def shown(readings: Readings, voice: str | None) -> tuple[Any, ...]:
    """Values for the outputs of `MonitorView`, of one voice or of all."""
    names = voice_names(readings)
    chosen = voice if voice in names else None
    drift = readings.drift if isinstance(readings.drift, ApiError) else of_voice(readings.drift, chosen)
    activity = readings.activity if isinstance(readings.activity, ApiError) else readings.activity.of(chosen)
    return (
        readings.health,
        gr.update(choices=[ALL, *names], value=chosen or ALL),
        None if isinstance(drift, ApiError) else alarms_of(drift),
        refused(activity) if isinstance(activity, ApiError) else totals_table(activity),
        refused(drift) if isinstance(drift, ApiError) else drift_panel(drift),
        *(nothing_drawn() if isinstance(activity, ApiError) else drawn(activity)),
    )


def refused(error: ApiError) -> str:
    return failure(f"{error_text(error)} Then press Refresh.")


def voice_names(readings: Readings) -> list[str]:
    """The voices, and the base where it answered."""
    names: set[str] = set()
    if not isinstance(readings.voices, ApiError):
        names.update(voice["name"] for voice in readings.voices)
    if not isinstance(readings.activity, ApiError):
        names.update(one["adapter"] for one in readings.activity.totals)
    if not isinstance(readings.drift, ApiError):
        names.update(one["adapter"] for one in readings.drift)
    return sorted(names)
