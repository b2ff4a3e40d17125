"""The components of the compare tab, and their values for a session."""

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from ..answer import footer
from ..markup import failure, heading, joined, paragraph, success
from ..sampling import sampling_fields
from ..sides import Halt
from .blind import PLACES
from .comparison import Comparison, Session, version_of
from .prompts import as_text
from .votes import Votes
from .win_rate import win_rate_panel

LOADING = "Loading the voices."
WELCOME = "Choose two to four voices and ask a question: the answers appear side by side."
HIDDEN = "name hidden until you vote"
FAILED = "This answer failed. The reason is shown when the other one is complete."
BLIND = "With two voices, names are hidden until you vote."
VERSIONS = "You can also type a version, such as acme@3f2a91c0de12."


@dataclass(frozen=True)
class Side:
    """The column of an answer."""

    column: gr.Column
    head: gr.HTML
    text: gr.Markdown
    facts: gr.HTML

    @classmethod
    def build(cls, place: int) -> "Side":
        with gr.Column(visible=False, min_width=260, elem_id=f"side-{PLACES[place].lower()}") as column:
            head = gr.HTML(elem_classes="side-head")
            text = gr.Markdown(line_breaks=True, latex_delimiters=[], elem_classes="side-text", container=True)
            facts = gr.HTML(elem_classes="side-facts")
        return cls(column, head, text, facts)

    @property
    def outputs(self) -> list[Any]:
        return [self.column, self.head, self.text, self.facts]


@dataclass(frozen=True)
class CompareView:
    """`state` is the tester's session; `halt` ends its running answers."""

    state: gr.State
    halt: gr.State
    models: gr.Dropdown
    blind: gr.Checkbox
    reload: gr.Button
    trouble: gr.HTML
    box: gr.Textbox
    ask: gr.Button
    stop: gr.Button
    lines: gr.Textbox
    file: gr.File
    start: gr.Button
    sampling: list[gr.Number]
    notice: gr.HTML
    progress: gr.Markdown
    following: gr.Button
    again: gr.Button
    prompt: gr.Textbox
    sides: tuple[Side, ...]
    votes: Votes
    win_rate: gr.HTML

    @classmethod
    def build(cls) -> "CompareView":
        with gr.Row(elem_id="compare-head"):
            models = gr.Dropdown(
                [],
                label="Voices to compare, two to four",
                info=VERSIONS,
                multiselect=True,
                max_choices=len(PLACES),
                allow_custom_value=True,
                interactive=True,
                scale=3,
                min_width=260,
            )
            blind = gr.Checkbox(True, label="Blind", info=BLIND, elem_id="blind")
            reload = gr.Button("Reload voices", scale=0, min_width=170)
        trouble = gr.HTML(paragraph(LOADING, "hint"))
        with gr.Row(elem_id="compare-ask"):
            box = gr.Textbox(
                "",
                label="Question",
                placeholder="Ask all voices the same question",
                max_lines=8,
                scale=4,
                min_width=260,
                elem_id="question",
            )
            ask = gr.Button("Ask", variant="primary", scale=0, min_width=110)
            stop = gr.Button("Stop", visible=False, scale=0, min_width=110)
        with gr.Accordion("A set of prompts", open=False):
            with gr.Row():
                lines = gr.Textbox("", label="Prompts, one per line", lines=5, max_lines=12, scale=2, min_width=260)
                file = gr.File(
                    label="Or a file: .txt with one prompt per line, .jsonl with messages or a prompt",
                    file_types=[".txt", ".jsonl"],
                    height=150,
                    min_width=260,
                )
            start = gr.Button("Start with the first prompt", variant="primary")
        with gr.Accordion("Settings", open=False):
            sampling = sampling_fields()
            by_key = gr.Checkbox(True, label="Vote with keys")
        notice = gr.HTML(paragraph(WELCOME, "hint"), elem_id="compare-notice")
        with gr.Row(elem_id="compare-progress"):
            progress = gr.Markdown(visible=False, elem_id="progress")
            following = gr.Button("Next prompt", visible=False, scale=0, min_width=160)
            again = gr.Button("Ask again", visible=False, scale=0, min_width=170)
        prompt = gr.Textbox("", label="Prompt", interactive=False, max_lines=8, visible=False, elem_id="prompt")
        with gr.Row(elem_id="sides"):
            sides = tuple(Side.build(place) for place in range(len(PLACES)))
        votes = Votes.build(by_key)
        with gr.Accordion("Win rates in this session", open=True):
            table = gr.HTML(win_rate_panel(()), elem_id="win-rate")
        head = (
            gr.State(Session()),
            gr.State(Halt()),
            models,
            blind,
            reload,
            trouble,
            box,
            ask,
            stop,
            lines,
            file,
            start,
        )
        course = (notice, progress, following, again, prompt)
        return cls(*head, sampling, *course, sides, votes, table)

    @property
    def asking(self) -> list[Any]:
        """Settings for a prompt, in the order of `Asking`."""
        return [self.models, self.blind, *self.sampling]

    @property
    def outputs(self) -> list[Any]:
        """The outputs of `shown`."""
        course = [self.ask, self.stop, self.notice, self.progress, self.following, self.again, self.prompt]
        sides = [component for side in self.sides for component in side.outputs]
        return [self.state, *course, *sides, self.votes.row, self.win_rate]


def shown(session: Session) -> list[Any]:
    """Values for `CompareView.outputs`."""
    comparison = session.comparison
    busy = comparison is not None and not comparison.over
    stuck = comparison is not None and comparison.over and not comparison.votable and comparison.vote is None
    progress = session.progress
    notice = success(session.notice) if session.notice else paragraph(WELCOME, "hint")
    return [
        session,
        gr.update(interactive=not busy),
        gr.update(visible=busy),
        gr.update(value=notice, visible=bool(session.notice) or comparison is None),
        gr.update(value=progress, visible=bool(progress)),
        gr.update(visible=not busy and session.asked < len(session.prompts)),
        gr.update(visible=stuck),
        gr.update(value=as_text(comparison.prompt) if comparison else "", visible=comparison is not None),
        *(update for place in range(len(PLACES)) for update in side(comparison, place)),
        gr.update(visible=comparison is not None and comparison.votable),
        win_rate_panel(session.votes),
    ]


def side(comparison: Comparison | None, place: int) -> list[Any]:
    """Values for a column. In a blind comparison nothing in it names the model."""
    if comparison is None or place >= len(comparison.answers):
        return [gr.update(visible=False), "", gr.update(value=""), ""]
    answer = comparison.at(place)
    head, text = PLACES[place], answer.content or ("…" if answer.details.get("under_way") else "*Empty answer.*")
    error = answer.details.get("error")
    if not comparison.named:
        answer = replace(answer, details={**answer.details, "version": HIDDEN})
        error = error and FAILED
    else:
        head = f"{head}: {version_of(answer)}"
    facts = paragraph(footer(answer), "hint")
    if error:
        text, facts = answer.content, joined(failure(f"No answer: {error}"), facts)
    return [gr.update(visible=True), heading(head), gr.update(value=text, visible=bool(text)), facts]
