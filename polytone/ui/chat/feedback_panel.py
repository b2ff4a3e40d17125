"""The feedback panel under the chat: a thumb, reasons, a comment and a correction of an answer."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..answer import footer
from ..api import ApiError
from ..shell import QUIET, Shell, warn
from ..thread import Thread, Turn
from .feedback import give, give_thumb
from .transcript import turn_at
from .view import ChatView

REASONS = ["wrong", "off tone", "too long", "too short", "off topic", "unsafe"]
THUMBS = {"Good": "up", "Bad": "down"}
NONE_YET = "Ask something first; then you can rate the answer here."


@dataclass(frozen=True)
class FeedbackPanel:
    """Feedback on the `selected` answer: the last one, or one that was clicked. `thumbs` are the session's thumbs."""

    selected: gr.State
    thumbs: gr.State
    about: gr.Markdown
    thumb: gr.Radio
    reasons: gr.CheckboxGroup
    comment: gr.Textbox
    send: gr.Button
    fix: gr.Button
    editor: gr.Column
    text: gr.Textbox
    save: gr.Button
    cancel: gr.Button

    @classmethod
    def build(cls) -> "FeedbackPanel":
        with gr.Accordion("Rate this answer", open=True, elem_id="feedback"):
            about = gr.Markdown(NONE_YET, elem_classes="hint")
            with gr.Row():
                thumb = gr.Radio(list(THUMBS), label="Thumb", scale=1, min_width=160)
                reasons = gr.CheckboxGroup(REASONS, label="Reasons", scale=3, min_width=260)
            comment = gr.Textbox("", label="Comment", lines=1, max_lines=6, placeholder="a note for your colleagues")
            with gr.Row():
                send = gr.Button("Send feedback", variant="primary", min_width=140)
                fix = gr.Button("Correct this answer", min_width=140)
            with gr.Column(visible=False) as editor:
                text = gr.Textbox("", label="Corrected answer", lines=4, max_lines=20)
                with gr.Row():
                    save = gr.Button("Save correction", variant="primary", min_width=140)
                    cancel = gr.Button("Cancel", min_width=140)
        return cls(gr.State(None), gr.State({}), about, thumb, reasons, comment, send, fix, editor, text, save, cancel)

    @property
    def focused(self) -> list[Any]:
        """The outputs of `focus`."""
        return [self.about, self.selected, *self.fields]

    @property
    def fields(self) -> list[Any]:
        """The outputs of `blank`."""
        return [self.thumb, self.reasons, self.comment, self.editor]

    def wire(self, shell: Shell, view: ChatView, turning: list[Any]) -> None:
        """Connect the components. The events in `turning` turn to another answer; they empty the panel at once, since
        by the end of that answer the tester may have begun to fill it in again."""
        does = FeedbackEvents(shell)
        for event in turning:
            event(blank, None, self.fields, **QUIET)
        who = [shell.key, shell.tester]
        view.settled.change(newest, view.thread, [self.about, self.selected], **QUIET)
        view.chatbot.select(clicked, view.thread, self.focused, **QUIET)
        view.chatbot.like(does.liked, [view.thread, self.thumbs, *who], [self.thumbs, *self.focused], **QUIET)
        words = [self.selected, self.thumbs, self.thumb, self.reasons, self.comment, *who]
        self.send.click(does.sent, words, [self.thumbs, self.thumb, self.reasons, self.comment], **QUIET)
        self.fix.click(open_editor, self.selected, [self.editor, self.text], **QUIET)
        self.cancel.click(lambda: gr.update(visible=False), None, self.editor, **QUIET)
        self.save.click(does.corrected, [self.selected, self.text, *who], self.editor, **QUIET)


@dataclass(frozen=True)
class FeedbackEvents:
    """Handlers of the panel; `thumbs` are the ids of the session's thumbs by completion."""

    shell: Shell

    async def liked(self, event: gr.LikeData, thread: Thread, thumbs: dict[str, str], key: str, tester: str) -> Any:
        """A thumb at the answer itself; a second click retracts it."""
        turn = turn_at(thread, event.index)
        if turn is None or not turn.completion_id:
            return thumbs, *unfocused()
        value = {"Like": "up", True: "up", "Dislike": "down", False: "down"}.get(event.liked)
        try:
            thumbs = await give_thumb(self.shell.api(key), turn.completion_id, value, thumbs, tester)
        except ApiError as error:
            warn(error)
            return thumbs, *unfocused()
        return thumbs, *focus(turn, next((word for word, thumb in THUMBS.items() if thumb == value), None))

    async def sent(
        self,
        turn: Turn | None,
        thumbs: dict[str, str],
        thumb: str | None,
        reasons: list[str],
        comment: str,
        key: str,
        tester: str,
    ) -> Any:
        unchanged = [gr.skip()] * 3
        if turn is None or not turn.completion_id:
            gr.Info(NONE_YET)
            return thumbs, *unchanged
        if not (thumb or reasons or comment.strip()):
            gr.Info("Choose a thumb or a reason, or write a comment first.")
            return thumbs, *unchanged
        api, completion = self.shell.api(key), turn.completion_id
        parts = [*({"key": "tag", "value": reason} for reason in reasons)]
        parts += [{"key": "comment", "text": comment.strip()}] if comment.strip() else []
        try:
            if thumb:
                thumbs = await give_thumb(api, completion, THUMBS[thumb], thumbs, tester)
            for one in parts:
                await give(api, completion, one, tester)
        except ApiError as error:
            warn(error)
            return thumbs, *unchanged
        gr.Info("Thank you. Your feedback is saved.")
        return thumbs, gr.skip(), gr.update(value=[]), gr.update(value="")

    async def corrected(self, turn: Turn | None, text: str, key: str, tester: str) -> Any:
        if turn is None or not turn.completion_id:
            return gr.skip()
        if not text.strip() or text.strip() == turn.content.strip():
            gr.Info("Change the text first, to what the voice should have said.")
            return gr.skip()
        try:
            await give(self.shell.api(key), turn.completion_id, {"key": "correction", "text": text}, tester)
        except ApiError as error:
            warn(error)
            return gr.skip()
        gr.Info("Your correction is saved. The next version can be trained on it.")
        return gr.update(visible=False)


def newest(thread: Thread) -> Any:
    answers = [turn for turn in thread.path() if turn.is_answer and turn.completion_id]
    return about(answers[-1] if answers else None)


def clicked(event: gr.SelectData, thread: Thread) -> Any:
    turn = turn_at(thread, event.index)
    return focus(turn) if turn is not None and turn.completion_id else unfocused()


def focus(turn: Turn | None, thumb: str | None = None) -> list[Any]:
    """The panel about an answer, empty but for a thumb."""
    return [*about(turn), *blank(thumb)]


def about(turn: Turn | None) -> list[Any]:
    return [gr.update(value=f"Answer of {footer(turn)}" if turn else NONE_YET), turn]


def blank(thumb: str | None = None) -> list[Any]:
    return [gr.update(value=thumb), gr.update(value=[]), gr.update(value=""), gr.update(visible=False)]


def unfocused() -> list[Any]:
    """The panel unchanged."""
    return [gr.skip() for _ in focus(None)]


def open_editor(turn: Turn | None) -> Any:
    if turn is None:
        gr.Info(NONE_YET)
        return gr.skip(), gr.skip()
    return gr.update(visible=True), gr.update(value=turn.content)
