"""The components of the chat tab, and their values for a thread."""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import gradio as gr

from ..sampling import sampling_fields
from ..sides import Halt
from ..thread import Thread
from .transcript import transcript

BUSY = {"submit_btn": False, "stop_btn": True}
READY = {"submit_btn": True, "stop_btn": False}


@dataclass(frozen=True)
class ChatView:
    """`thread` is the session's conversation; `settled` changes when the thread has changed and no answer is running.
    `halt` ends the running answer."""

    thread: gr.State
    settled: gr.State
    halt: gr.State
    voice: gr.Dropdown
    fresh: gr.Button
    chatbot: gr.Chatbot
    branches: gr.Row
    earlier: gr.Button
    place: gr.Markdown
    later: gr.Button
    box: gr.Textbox
    system: gr.Textbox
    sampling: list[gr.Number]

    @classmethod
    def build(cls) -> "ChatView":
        with gr.Row(elem_id="chat-head"):
            voice = gr.Dropdown(label="Voice", choices=[], interactive=True, scale=3, min_width=200)
            fresh = gr.Button("New conversation", scale=1, min_width=140)
        chatbot = gr.Chatbot(
            label="Conversation",
            height="58vh",
            sanitize_html=True,
            allow_tags=False,
            editable="user",
            buttons=["copy", "copy_all"],
            placeholder="**Ask as a customer would.**\n\nThe voice chosen above answers.",
            elem_id="transcript",
        )
        with gr.Row(visible=False, elem_id="branches") as branches:
            earlier = gr.Button("← Earlier", size="sm", min_width=90, scale=0)
            place = gr.Markdown("", elem_id="branch-place")
            later = gr.Button("Later →", size="sm", min_width=90, scale=0)
        box = gr.Textbox(
            label="Message",
            show_label=False,
            placeholder="Ask as a customer would",
            submit_btn=True,
            max_lines=8,
            autofocus=True,
            elem_id="message",
        )
        with gr.Accordion("Settings", open=False):
            system = gr.Textbox(label="System prompt", placeholder="empty for the voice's own", lines=2)
            sampling = sampling_fields()
        states = (gr.State(Thread()), gr.State(""), gr.State(Halt()))
        head, branch = (voice, fresh, chatbot), (branches, earlier, place, later)
        return cls(*states, *head, *branch, box, system, sampling)

    @property
    def asking(self) -> list[Any]:
        """Settings for a question, in the order of `chosen`."""
        return [self.voice, self.system, *self.sampling]

    @property
    def turning(self) -> list[Any]:
        """The events that turn to another answer, or ask for one."""
        asked = [self.box.submit, self.chatbot.retry, self.chatbot.edit]
        return [*asked, self.chatbot.clear, self.fresh.click, self.earlier.click, self.later.click]

    @property
    def outputs(self) -> list[Any]:
        """The outputs of `shown`."""
        return [self.box, self.chatbot, self.branches, self.place, self.thread, self.settled]


def shown(thread: Thread, url: str, busy: bool = False, sent: bool = False) -> tuple[Any, ...]:
    """Values for `ChatView.outputs`; the box is emptied if its text was `sent`."""
    number, of = thread.place()
    return (
        gr.update(**({"value": ""} if sent else {}), **(BUSY if busy else READY)),
        gr.update(value=transcript(thread, url)),
        gr.update(visible=of > 1 and not busy),
        f"Branch {number} of {of}",
        thread,
        gr.skip() if busy else uuid4().hex,
    )


def nothing_new(thread: Thread) -> tuple[Any, ...]:
    """No change: an event that yields nothing would empty all of its outputs."""
    return tuple(gr.skip() for _ in shown(thread, ""))
