"""The components of the review tab, and their values for an item."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..markup import failure, heading, paragraph, success
from .item import LeasedReview

ANYONE = ("Any voice", "")
LOADING = "Loading the queue."
BEGIN = '"Next answer" takes the most urgent one and reserves it for you, so that nobody else reviews it too.'


@dataclass(frozen=True)
class ReviewView:
    """`leased` is the reviewer's current item, if any."""

    leased: gr.State
    waiting: gr.HTML
    voice: gr.Dropdown
    following: gr.Button
    notice: gr.HTML
    item: gr.Column
    reason: gr.HTML
    missing: gr.HTML
    conversation: gr.Chatbot
    answer: gr.Markdown
    feedback: gr.HTML
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
            voice = gr.Dropdown([ANYONE], value="", label="Voice", scale=2, min_width=200)
            following = gr.Button("Next answer", variant="primary", scale=1, min_width=140)
        notice = gr.HTML(paragraph(BEGIN, "hint"), elem_id="review-notice")
        with gr.Column(visible=False, elem_id="review-item") as item:
            reason, missing = gr.HTML(elem_id="review-reason"), gr.HTML(visible=False)
            with gr.Row():
                conversation = gr.Chatbot(
                    label="Conversation",
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
                    gr.HTML(heading("Answer"))
                    answer = gr.Markdown(line_breaks=True, latex_delimiters=[], container=True, elem_id="review-answer")
                    gr.HTML(heading("Feedback"))
                    feedback = gr.HTML(elem_id="review-feedback")
            with gr.Row():
                accept = gr.Button("Accept as it is", variant="primary", min_width=180, elem_id="review-accept")
                edit = gr.Button("Correct it", min_width=180)
                reject = gr.Button("Reject, leave out of exports", min_width=180)
            with gr.Column(visible=False) as editor:
                text = gr.Textbox("", label="Corrected answer", lines=5, max_lines=20, elem_id="review-text")
                with gr.Row():
                    save = gr.Button("Save the correction", variant="primary", min_width=160)
                    cancel = gr.Button("Cancel", min_width=160)
        with gr.Accordion("Queue statistics", open=False):
            counts = gr.HTML(elem_id="review-counts")
        head = (gr.State(None), waiting, voice, following, notice, item, reason, missing)
        return cls(*head, conversation, answer, feedback, accept, edit, reject, editor, text, save, cancel, counts)

    @property
    def outputs(self) -> list[Any]:
        """The outputs of `shown`."""
        item = [self.item, self.reason, self.missing, self.conversation, self.answer, self.feedback]
        return [self.leased, self.notice, *item, self.edit, self.editor, self.text]


def shown(leased: LeasedReview | None, notice: str = "", bad: bool = False) -> list[Any]:
    """Values for `ReviewView.outputs`, of an item or of none."""
    message = gr.update(value=failure(notice) if bad else success(notice), visible=bool(notice))
    closed = [gr.update(visible=False), gr.update(value="")]
    if leased is None:
        hidden = [gr.update(visible=False), "", gr.update(visible=False), gr.update(value=[]), "", ""]
        return [None, message, *hidden, gr.update(visible=False), *closed]
    conversation, reply = leased.conversation(), leased.reply
    item = [
        gr.update(visible=True),
        leased.reason(),
        gr.update(value=paragraph(leased.missing), visible=bool(leased.missing)),
        gr.update(value=conversation, visible=bool(conversation)),
        "*Not kept.*" if reply is None else reply or "*Empty answer.*",
        leased.feedback(),
    ]
    return [leased, message, *item, gr.update(visible=reply is not None), closed[0], gr.update(value=reply or "")]
