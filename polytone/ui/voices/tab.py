"""The voices tab: rollouts of voices, details of versions, and changes to both."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..api import ApiError, Json
from ..confirmation import Confirmation
from ..markup import failure, paragraph
from ..shell import EVENT, LATEST, QUIET, Shell, error_text
from .plans import canary, promote, retire, roll_back, silence, upload
from .snapshot import Snapshot, read_snapshot
from .version_words import version_panel
from .words import all_versions, audit_table, share_words, voice_panel, voices_table

LOADING = "Loading the voices."


def voices_tab(shell: Shell, page: gr.Blocks, tab: gr.Tab) -> None:
    view = VoicesView.build()
    actions = Actions.build()
    with gr.Accordion("Upload a version", open=False, elem_id="upload"):
        sent = Upload.build()
    audit = gr.HTML(elem_id="audit")
    view.wire(shell, tab, audit, [actions.wire(shell, view), sent.wire(shell)])


@dataclass(frozen=True)
class VoicesView:
    """`shown` is the chosen voice as the server sent it; changes are planned from that."""

    shown: gr.State
    name: gr.Dropdown
    refresh: gr.Button
    overview: gr.HTML
    panel: gr.HTML
    version: gr.Dropdown
    facts: gr.HTML

    @classmethod
    def build(cls) -> "VoicesView":
        with gr.Row(elem_classes="choosing"):
            name = gr.Dropdown(label="Voice", choices=[], interactive=True, scale=3, min_width=200)
            refresh = gr.Button("Refresh", scale=0, min_width=120)
        overview = gr.HTML(paragraph(LOADING, "empty"), elem_id="voices-overview")
        panel = gr.HTML(elem_id="voice-panel")
        version = gr.Dropdown(label="Version", choices=[], interactive=True)
        facts = gr.HTML(elem_id="version-facts")
        return cls(gr.State(), name, refresh, overview, panel, version, facts)

    def wire(self, shell: Shell, tab: gr.Tab, audit: gr.HTML, changes: list[Any]) -> None:
        async def show(key: str, name: str | None, version: str | None) -> tuple[Any, ...]:
            try:
                return shown(await read_snapshot(shell.api(key), name, version))
            except ApiError as error:
                nothing = gr.update(choices=[], value=None)
                problem = failure(f"{error_text(error)} Then press Refresh.")
                return None, nothing, problem, "", nothing, "", ""

        outputs = [self.shown, self.name, self.overview, self.panel, self.version, self.facts, audit]
        moments = [tab.select, self.refresh.click, self.name.input, self.version.input, shell.admin.submit]
        chosen = [shell.admin, self.name, self.version]
        gr.on(moments, show, chosen, outputs, show_progress="minimal", **LATEST)
        for change in changes:
            change.then(show, chosen, outputs, show_progress="minimal", **EVENT)


def shown(snapshot: Snapshot) -> tuple[Any, ...]:
    """Values for the outputs of `VoicesView`."""
    voice, names = snapshot.voice, [voice["name"] for voice in snapshot.voices]
    if voice is None:
        nothing = gr.update(choices=[], value=None)
        return None, nothing, voices_table(snapshot.voices), "", nothing, "", ""
    versions = [(version_label(voice, one), one["version"]) for one in all_versions(voice)]
    of = " and ".join(dict.fromkeys(filter(None, (voice["name"], snapshot.version))))
    return (
        voice,
        gr.update(choices=names, value=voice["name"]),
        voices_table(snapshot.voices),
        voice_panel(voice),
        gr.update(choices=versions, value=snapshot.version),
        version_panel(snapshot.details)
        if snapshot.details
        else paragraph(snapshot.problem or "Choose a version.", "empty"),
        audit_table(of, snapshot.audit),
    )


def version_label(voice: Json, version: Json) -> str:
    share = f", {share_words(voice, version['version'])}" if version["state"] != "retired" else ""
    return f"{version['version']} ({version['state']}{share})"


@dataclass(frozen=True)
class Actions:
    promote: gr.Button
    percent: gr.Number
    canary: gr.Button
    back: gr.Button
    retire: gr.Button
    silence: gr.Button
    confirmation: Confirmation

    @classmethod
    def build(cls) -> "Actions":
        with gr.Row(elem_classes="actions"):
            promoting = gr.Button("Promote to 100 %", min_width=150)
            percent = gr.Number(label="Canary share, in %", value=10, step=1, min_width=150)
            canarying = gr.Button("Start canary", min_width=150)
        with gr.Row():
            back = gr.Button("Roll back", min_width=150)
            retiring = gr.Button("Retire version", min_width=150)
            silencing = gr.Button("Stop answering", min_width=150)
        return cls(promoting, percent, canarying, back, retiring, silencing, Confirmation.build())

    def wire(self, shell: Shell, view: VoicesView) -> Any:
        chosen = [view.shown, view.version]
        self.confirmation.proposes(self.promote.click, promote, chosen)
        self.confirmation.proposes(self.canary.click, canary, [*chosen, self.percent])
        self.confirmation.proposes(self.back.click, roll_back, [view.shown])
        self.confirmation.proposes(self.retire.click, retire, chosen)
        self.confirmation.proposes(self.silence.click, silence, [view.shown])
        for moment in (view.name.select, view.version.select):  # `input` fires again when the list closes
            self.confirmation.forgets(moment)
        return self.confirmation.wire(shell)


@dataclass(frozen=True)
class Upload:
    name: gr.Textbox
    file: gr.File
    send: gr.Button
    confirmation: Confirmation

    @classmethod
    def build(cls) -> "Upload":
        name = gr.Textbox(label="Voice name", placeholder="acme", max_length=63)
        file = gr.File(label="Version (.tar.gz)", file_count="single", height=140)
        return cls(name, file, gr.Button("Upload", min_width=150), Confirmation.build("Confirm upload"))

    def wire(self, shell: Shell) -> Any:
        self.confirmation.proposes(self.send.click, upload, [self.name, self.file])
        sent = self.confirmation.wire(shell)
        sent.then(lambda: None, None, self.file, **QUIET)
        return sent
