"""What a tester says of an answer: a thumb, reasons, a comment, and how it should have been."""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import gradio as gr

from .answer import footer
from .api import Api, ApiError
from .chat_view import ChatView
from .shell import Shell, annotator, warn
from .thread import Thread, Turn
from .transcript import turn_at

REASONS = ["wrong", "off tone", "too long", "too short", "off topic", "unsafe"]
THUMBS = {"Good": "up", "Bad": "down"}
NONE_YET = "Ask something first; then you can say here what the answer was like."


@dataclass(frozen=True)
class Opinion:
    """The panel under the chat; it is about the last answer, or the one that was clicked."""

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
    def build(cls) -> "Opinion":
        with gr.Accordion("What was this answer like?", open=True, elem_id="opinion"):
            about = gr.Markdown(NONE_YET, elem_classes="hint")
            with gr.Row():
                thumb = gr.Radio(list(THUMBS), label="Thumb", scale=1, min_width=160)
                reasons = gr.CheckboxGroup(REASONS, label="Because it is", scale=3, min_width=260)
            comment = gr.Textbox("", label="Comment", lines=1, max_lines=6, placeholder="what a colleague should know")
            with gr.Row():
                send = gr.Button("Send feedback", variant="primary", min_width=140)
                fix = gr.Button("Fix this answer", min_width=140)
            with gr.Column(visible=False) as editor:
                text = gr.Textbox("", label="The answer as it should have been", lines=4, max_lines=20)
                with gr.Row():
                    save = gr.Button("Save correction", variant="primary", min_width=140)
                    cancel = gr.Button("Cancel", min_width=140)
        return cls(about, thumb, reasons, comment, send, fix, editor, text, save, cancel)

    def wire(self, shell: Shell, view: ChatView) -> None:
        selected: gr.State = gr.State(None)
        given: gr.State = gr.State({})
        chatbot, thread = view.chatbot, view.thread
        who = [shell.key, shell.tester]

        def newest(thread: Thread) -> Any:
            answers = [turn for turn in thread.path() if turn.is_answer and turn.completion_id]
            return focus(answers[-1] if answers else None)

        def clicked(thread: Thread, event: gr.SelectData) -> Any:
            turn = turn_at(thread, event.index)
            return focus(turn) if turn is not None and turn.completion_id else [gr.skip()] * 6

        async def liked(thread: Thread, given: dict[str, str], key: str, tester: str, event: gr.LikeData) -> Any:
            """A thumb at the answer itself; taking it back retracts it."""
            turn = turn_at(thread, event.index)
            if turn is None or not turn.completion_id:
                return given, *[gr.skip()] * 6
            value = {"Like": "up", True: "up", "Dislike": "down", False: "down"}.get(event.liked)
            given = await say_thumb(shell.api(key), turn.completion_id, value, given, tester)
            about, chosen, _, *rest = focus(turn)
            shown = next((word for word, thumb in THUMBS.items() if thumb == value), None)
            return given, about, chosen, gr.update(value=shown), *rest

        async def sent(
            turn: Turn | None,
            given: dict[str, str],
            thumb: str | None,
            reasons: list[str],
            comment: str,
            key: str,
            tester: str,
        ) -> Any:
            if turn is None or not turn.completion_id:
                gr.Info(NONE_YET)
                return [gr.skip()] * 4
            if not (thumb or reasons or comment.strip()):
                gr.Info("Choose a thumb or a reason, or write a comment.")
                return [gr.skip()] * 4
            api, completion = shell.api(key), turn.completion_id
            said = [*({"key": "tag", "value": reason} for reason in reasons)]
            said += [{"key": "comment", "text": comment.strip()}] if comment.strip() else []
            try:
                if thumb:
                    given = await give_thumb(api, completion, THUMBS[thumb], given, tester)
                for one in said:
                    await give(api, completion, one, tester)
            except ApiError as error:
                warn(error)
                return given, *[gr.skip()] * 3
            gr.Info("Thank you. Your feedback is kept.")
            return given, gr.skip(), gr.update(value=[]), gr.update(value="")

        async def corrected(turn: Turn | None, text: str, key: str, tester: str) -> Any:
            if turn is None or not turn.completion_id:
                return gr.skip()
            if not text.strip() or text.strip() == turn.content.strip():
                gr.Info("Change the text first: it is what the voice should have said.")
                return gr.skip()
            try:
                await give(shell.api(key), turn.completion_id, {"key": "correction", "text": text}, tester)
            except ApiError as error:
                warn(error)
                return gr.skip()
            gr.Info("Your correction is kept. It can teach the next version.")
            return gr.update(visible=False)

        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        focused = [self.about, selected, self.thumb, self.reasons, self.comment, self.editor]
        view.settled.change(newest, thread, focused, **quiet)
        chatbot.select(clicked, thread, focused, **quiet)
        chatbot.like(liked, [thread, given, *who], [given, *focused], **quiet)
        words = [selected, given, self.thumb, self.reasons, self.comment, *who]
        self.send.click(sent, words, [given, self.thumb, self.reasons, self.comment], **quiet)
        self.fix.click(open_editor, selected, [self.editor, self.text], **quiet)
        self.cancel.click(lambda: gr.update(visible=False), None, self.editor, **quiet)
        self.save.click(corrected, [selected, self.text, *who], self.editor, **quiet)


def focus(turn: Turn | None) -> list[Any]:
    """The panel about an answer, with nothing said of it yet."""
    about = f"About the answer of {footer(turn)}" if turn else NONE_YET
    blank = [gr.update(value=None), gr.update(value=[]), gr.update(value=""), gr.update(visible=False)]
    return [gr.update(value=about), turn, *blank]


def open_editor(turn: Turn | None) -> Any:
    if turn is None:
        gr.Info(NONE_YET)
        return gr.skip(), gr.skip()
    return gr.update(visible=True), gr.update(value=turn.content)


async def say_thumb(api: Api, completion: str, value: str | None, given: dict[str, str], tester: str) -> dict[str, str]:
    try:
        return await give_thumb(api, completion, value, given, tester)
    except ApiError as error:
        warn(error)
        return given


async def give_thumb(
    api: Api, completion: str, value: str | None, given: dict[str, str], tester: str
) -> dict[str, str]:
    """A thumb takes the place of the one given before; None takes it back. Returns the ids of thumbs that stand."""
    before = given.get(completion)
    standing = {key: identifier for key, identifier in given.items() if key != completion}
    if value is None:
        if before:
            await api.post("/v1/feedback", {"key": "retract", "supersedes": before, "annotator": annotator(tester)})
        return standing
    said = {"key": "thumb", "value": value, **({"supersedes": before} if before else {})}
    return {**standing, completion: await give(api, completion, said, tester)}


async def give(api: Api, completion: str, said: dict[str, Any], tester: str) -> str:
    """Say something of a completion; the id of the feedback."""
    body = {**said, "completion_id": completion, "annotator": annotator(tester), "idempotency_key": uuid4().hex}
    return str((await api.post("/v1/feedback", body))["id"])
