"""The components of the review tab, and what they show of the item in hand."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..markup import heading, paragraph, told_badly, told_well
from .item import Held

ANYONE = ("Any voice", "")
LOADING = "The queue is being counted."
BEGIN = "Next answer takes the most pressing one and holds it for you, so that nobody else does the same work."


@dataclass(frozen=True)
class ReviewView:
    """`held` is the item in the reviewer's hands, if any."""

    held: gr.State
    waiting: gr.HTML
    voice: gr.Dropdown
    following: gr.Button
    notice: gr.HTML
    item: gr.Column
    why: gr.HTML
    missing: gr.HTML
    conversation: gr.Chatbot
    answer: gr.Markdown
    said: gr.HTML
    accept: gr.Button
    edit: gr.Button
    reject: gr.Button
    editor: gr.Column
    text: gr.Textbox
    save: gr.Button
    cancel: gr.Button
    counts: gr.HTML

    @classmethod
    def build(cls) -> "ReviewView":
        waiting = gr.HTML(paragraph(LOADING, "hint"), elem_id="review-waiting")
        with gr.Row(elem_id="review-head"):
            voice = gr.Dropdown([ANYONE], value="", label="Of which voice", scale=2, min_width=200)
            following = gr.Button("Next answer", variant="primary", scale=1, min_width=140)
        notice = gr.HTML(paragraph(BEGIN, "hint"), elem_id="review-notice")
        with gr.Column(visible=False, elem_id="review-item") as item:
            why, missing = gr.HTML(elem_id="review-why"), gr.HTML(visible=False)
            with gr.Row():
                conversation = gr.Chatbot(
                    label="What was asked",
                    height=None,
                    min_height=150,
                    max_height=420,
                    sanitize_html=True,
                    allow_tags=False,
                    buttons=["copy"],
                    min_width=280,
                    elem_id="review-asked",
                )
                with gr.Column(min_width=280):
                    gr.HTML(heading("The answer"))
                    answer = gr.Markdown(line_breaks=True, latex_delimiters=[], container=True, elem_id="review-answer")
                    gr.HTML(heading("What was said of it"))
                    said = gr.HTML(elem_id="review-said")
            with gr.Row():
                accept = gr.Button("Accept: good as it is", variant="primary", min_width=180, elem_id="review-accept")
                edit = gr.Button("Edit: make it right", min_width=180)
                reject = gr.Button("Reject: leave out of exports", min_width=180)
            with gr.Column(visible=False) as editor:
                text = gr.Textbox(
                    "", label="The answer as it should have been", lines=5, max_lines=20, elem_id="review-text"
                )
                with gr.Row():
                    save = gr.Button("Save the correction", variant="primary", min_width=160)
                    cancel = gr.Button("Cancel", min_width=160)
        with gr.Accordion("The queue in numbers", open=False):
            counts = gr.HTML(elem_id="review-counts")
        head = (gr.State(None), waiting, voice, following, notice, item, why, missing)
        return cls(*head, conversation, answer, said, accept, edit, reject, editor, text, save, cancel, counts)

    @property
    def outputs(self) -> list[Any]:
        """What `shown` gives values for."""
        item = [self.item, self.why, self.missing, self.conversation, self.answer, self.said]
        return [self.held, self.notice, *item, self.edit, self.editor, self.text]


def shown(held: Held | None, notice: str = "", bad: bool = False) -> list[Any]:
    """The view of the item in hand, or of none, for `ReviewView.outputs`."""
    told = gr.update(value=told_badly(notice) if bad else told_well(notice), visible=bool(notice))
    closed = [gr.update(visible=False), gr.update(value="")]
    if held is None:
        hidden = [gr.update(visible=False), "", gr.update(visible=False), gr.update(value=[]), "", ""]
        return [None, told, *hidden, gr.update(visible=False), *closed]
    conversation, reply = held.conversation(), held.reply
    item = [
        gr.update(visible=True),
        held.why(),
        gr.update(value=paragraph(held.missing), visible=bool(held.missing)),
        gr.update(value=conversation, visible=bool(conversation)),
        "*Not kept.*" if reply is None else reply or "*Nothing was said.*",
        held.said(),
    ]
    return [held, told, *item, gr.update(visible=reply is not None), closed[0], gr.update(value=reply or "")]
