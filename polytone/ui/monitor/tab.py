"""The monitor tab: is the server well, what happened over time, and do the voices still say what they said."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

import gradio as gr

from ..api import Api, ApiError, Json
from ..markup import heading, paragraph, told_badly
from ..shell import LATEST, QUIET, Shell, told
from .activity import PERIODS, Activity, of_voice, read_activity, totals_table
from .alarms import Alarms
from .charts import Charts, drawn, nothing_drawn
from .drift import alarms_of, drift_panel
from .health import read_health

T = TypeVar("T")
EVERY_SECONDS = 30
ALL = "all of them"
WAIT = "Loading."


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
        health = gr.HTML(paragraph(WAIT, "empty"), elem_id="health")
        with gr.Row(elem_classes="choosing"):
            voice = gr.Dropdown(label="Voice to watch", choices=[ALL], value=ALL, interactive=True, min_width=180)
            labels = [period.label for period in PERIODS]
            period = gr.Dropdown(label="The last", choices=labels, value=labels[1], interactive=True, min_width=140)
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
        outputs = [top.health, top.voice, self.alarms.standing, self.totals, self.drift, *self.charts.outputs]
        chosen = [shell.admin, top.voice, top.period]
        moments = [tab.select, top.refresh.click, top.voice.input, top.period.input, shell.admin.submit, top.timer.tick]
        gr.on(moments, show, chosen, outputs, show_progress="minimal", **LATEST)
        self.alarms.wire(shell).then(show, chosen, outputs, **QUIET)
        top.often.input(lambda on: gr.Timer(active=on), top.often, top.timer, **QUIET)


@dataclass(frozen=True)
class Seen:
    """What was read; each part may have been refused on its own."""

    health: str
    voices: list[Json] | ApiError
    activity: Activity | ApiError
    drift: list[Json] | ApiError


async def read_all(api: Api, label: str | None) -> Seen:
    period = next((one for one in PERIODS if one.label == label), PERIODS[1])
    health, voices, activity, drift = await asyncio.gather(
        read_health(api),
        tried(api.get("/admin/adapters")),
        tried(read_activity(api, period)),
        tried(api.get("/admin/drift")),
    )
    return Seen(
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


def shown(seen: Seen, voice: str | None) -> tuple[Any, ...]:
    """The view of what was read, of one voice or of all."""
    names = voice_names(seen)
    chosen = voice if voice in names else None
    drift = seen.drift if isinstance(seen.drift, ApiError) else of_voice(seen.drift, chosen)
    activity = seen.activity if isinstance(seen.activity, ApiError) else seen.activity.of(chosen)
    return (
        seen.health,
        gr.update(choices=[ALL, *names], value=chosen or ALL),
        None if isinstance(drift, ApiError) else alarms_of(drift),
        refused(activity) if isinstance(activity, ApiError) else totals_table(activity),
        refused(drift) if isinstance(drift, ApiError) else drift_panel(drift),
        *(nothing_drawn() if isinstance(activity, ApiError) else drawn(activity)),
    )


def refused(error: ApiError) -> str:
    return told_badly(f"{told(error)} Then press Refresh.")


def voice_names(seen: Seen) -> list[str]:
    """The voices, and the base where it answered."""
    names: set[str] = set()
    if not isinstance(seen.voices, ApiError):
        names.update(voice["name"] for voice in seen.voices)
    if not isinstance(seen.activity, ApiError):
        names.update(one["adapter"] for one in seen.activity.totals)
    if not isinstance(seen.drift, ApiError):
        names.update(one["adapter"] for one in seen.drift)
    return sorted(names)
