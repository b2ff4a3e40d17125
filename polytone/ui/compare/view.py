"""The components of the compare tab, and what they show of a session."""

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from ..answer import footer
from ..markup import heading, joined, paragraph, told_badly, told_well
from ..sampling import sampling_fields
from ..sides import Halt
from .blind import PLACES
from .comparison import Comparison, Session, version_of
from .prompts import as_text
from .votes import Votes
from .win_rate import win_rate

LOADING = "The voices are being listed."
WELCOME = "Choose two to four voices and ask something: the answers come side by side."
HIDDEN = "name hidden until your vote"
FAILED = "This side failed. The reason is shown when the other side has answered."
BLIND = "Of two voices, names are hidden until your vote."
VERSIONS = "A pinned version such as acme@3f2a91c0de12 can be typed."


@dataclass(frozen=True)
class Side:
    """One answer's column."""

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
    """`state` is the tester's session, `halt` ends what it has under way."""

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
    standing: gr.HTML

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
                placeholder="Ask all of them the same",
                max_lines=8,
                scale=4,
                min_width=260,
                elem_id="question",
            )
            ask = gr.Button("Ask", variant="primary", scale=0, min_width=110)
            stop = gr.Button("Stop", visible=False, scale=0, min_width=110)
        with gr.Accordion("A set of prompts", open=False):
            with gr.Row():
                lines = gr.Textbox("", label="Prompts, one a line", lines=5, max_lines=12, scale=2, min_width=260)
                file = gr.File(
                    label="Or a file: .txt with a prompt a line, .jsonl with messages or a prompt",
                    file_types=[".txt", ".jsonl"],
                    height=150,
                    min_width=260,
                )
            start = gr.Button("Start with the first prompt", variant="primary")
        with gr.Accordion("Settings", open=False):
            sampling = sampling_fields()
            by_key = gr.Checkbox(True, label="Vote by key")
        notice = gr.HTML(paragraph(WELCOME, "hint"), elem_id="compare-notice")
        with gr.Row(elem_id="compare-progress"):
            progress = gr.Markdown(visible=False, elem_id="progress")
            following = gr.Button("Next prompt", visible=False, scale=0, min_width=160)
            again = gr.Button("Ask this again", visible=False, scale=0, min_width=170)
        prompt = gr.Textbox("", label="Asked", interactive=False, max_lines=8, visible=False, elem_id="asked")
        with gr.Row(elem_id="sides"):
            sides = tuple(Side.build(place) for place in range(len(PLACES)))
        votes = Votes.build(by_key)
        with gr.Accordion("Standing in this session", open=True):
            table = gr.HTML(win_rate(()), elem_id="standing")
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
        """What a prompt is asked with, in the order of `Asking`."""
        return [self.models, self.blind, *self.sampling]

    @property
    def outputs(self) -> list[Any]:
        """What `shown` gives values for."""
        course = [self.ask, self.stop, self.notice, self.progress, self.following, self.again, self.prompt]
        sides = [component for side in self.sides for component in side.outputs]
        return [self.state, *course, *sides, self.votes.row, self.standing]


def shown(session: Session) -> list[Any]:
    """The view of a session, for `CompareView.outputs`."""
    comparison = session.comparison
    busy = comparison is not None and not comparison.over
    stuck = comparison is not None and comparison.over and not comparison.votable and comparison.vote is None
    progress = session.progress
    notice = told_well(session.notice) if session.notice else paragraph(WELCOME, "hint")
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
        win_rate(session.votes),
    ]


def side(comparison: Comparison | None, place: int) -> list[Any]:
    """One column: in a blind comparison nothing in it says which model it is."""
    if comparison is None or place >= len(comparison.answers):
        return [gr.update(visible=False), "", gr.update(value=""), ""]
    answer = comparison.at(place)
    head, text = PLACES[place], answer.content or ("…" if answer.details.get("under_way") else "*Nothing was said.*")
    error = answer.details.get("error")
    if not comparison.named:
        answer = replace(answer, details={**answer.details, "version": HIDDEN})
        error = error and FAILED
    else:
        head = f"{head}: {version_of(answer)}"
    facts = paragraph(footer(answer), "hint")
    if error:
        text, facts = answer.content, joined(told_badly(f"No answer: {error}"), facts)
    return [gr.update(visible=True), heading(head), gr.update(value=text, visible=bool(text)), facts]
