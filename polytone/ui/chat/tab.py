"""The chat tab: talk to a voice, stop it, retry, return to an earlier answer, and give feedback."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from ..answer import answered, ended
from ..api import ApiError
from ..sampling import Sampling
from ..shell import LATEST, QUIET, Shell, voice_choices, warn
from ..sides import Halt, side_by_side
from ..thread import Thread, Turn, new_id
from .feedback_panel import FeedbackPanel
from .history import History
from .saving import new_conversation, save_turn
from .transcript import turn_at
from .view import ChatView, nothing_new, shown

NO_VOICE = "No voice is available yet. The server may still be starting: open the list of voices again shortly."


@dataclass(frozen=True)
class Chosen:
    """Settings for a question."""

    model: str
    system: str
    sampling: Sampling

    def request(self, thread: Thread, question: str) -> dict[str, Any]:
        """The chat completion that answers `question`."""
        system = [{"role": "system", "content": self.system}] if self.system.strip() else []
        return self.sampling.request(self.model, [*system, *thread.messages(question)])


def chosen(model: str | None, system: str | None, *sampling: Any) -> Chosen:
    """From the values of `ChatView.asking`."""
    return Chosen(model or "", system or "", Sampling(*sampling))


def chat_tab(shell: Shell, page: gr.Blocks, tab: gr.Tab) -> None:
    with gr.Row(elem_id="chat"):
        with gr.Column(scale=1, min_width=260, elem_id="history"):
            history = History.build()
        with gr.Column(scale=4, min_width=320):
            view = ChatView.build()
            feedback = FeedbackPanel.build()
    asked = wire(Chat(shell), view, page, tab)
    history.wire(shell, page, tab, view, asked)
    feedback.wire(shell, view, [*view.turning, history.chosen.input])


@dataclass(frozen=True)
class Chat:
    """Handlers; every update is a value for each of `ChatView.outputs`."""

    shell: Shell

    async def voices(self, model: str | None, key: str) -> Any:
        try:
            choices = voice_choices(await self.shell.api(key).models())
        except ApiError as error:
            warn(error)
            return gr.skip()
        models = [name for _, name in choices]
        if model in models:  # another may be chosen while this runs
            return gr.update(choices=choices)
        return gr.update(choices=choices, value=next(iter(models), None))

    async def send(self, text: str, thread: Thread, halt: Halt, key: str, *asking: Any) -> AsyncIterator[Any]:
        if not text.strip():
            yield nothing_new(thread)
            return
        async for update in self._ask(
            thread.with_message("user", text, thread.head), halt, key, chosen(*asking), sent=True
        ):
            yield update

    async def again(
        self, event: gr.RetryData, thread: Thread, halt: Halt, key: str, *asking: Any
    ) -> AsyncIterator[Any]:
        """Ask the question again; the earlier answer stays as a sibling."""
        turn = turn_at(thread, event.index)
        if turn is None:
            yield nothing_new(thread)
            return
        question = turn.parent if turn.is_answer else turn.id
        async for update in self._ask(replace(thread, head=question), halt, key, chosen(*asking)):
            yield update

    async def edit(self, event: gr.EditData, thread: Thread, halt: Halt, key: str, *asking: Any) -> AsyncIterator[Any]:
        """Ask with another text; the earlier question stays as a sibling."""
        turn = turn_at(thread, event.index)
        before = turn.parent if turn else thread.head
        async for update in self._ask(
            thread.with_message("user", str(event.value), before), halt, key, chosen(*asking)
        ):
            yield update

    async def _ask(self, thread: Thread, halt: Halt, key: str, how: Chosen, sent: bool = False) -> AsyncIterator[Any]:
        """Answer the question at the head of the thread."""
        if not how.model:
            raise gr.Error(NO_VOICE, title="No voice")
        api, url = self.shell.api(key), self.shell.server.url
        question = thread.head or ""
        yield shown(thread, url, busy=True, sent=sent)
        thread = await new_conversation(api, thread)
        await save_turn(api, thread, thread.turns[question])
        started = Turn(new_id(), question, "assistant", "")
        streams = [answered(api, how.request(thread, question), thread.id, started)]
        async with aclosing(side_by_side(streams, [started], halt.begin())) as moments:
            async for (answer,) in moments:
                thread = thread.with_turn(answer)
                yield shown(thread, url, busy=True)
        answer = thread.turns[started.id]
        if answer.details.get("under_way"):  # it was stopped: the text so far stays
            answer = ended(answer, finish="stopped")
        thread = thread.with_turn(answer)
        await save_turn(api, thread, answer)
        yield shown(thread, url)

    async def stop(self, halt: Halt) -> None:
        """End the running answer by its own signal, so that nothing of it arrives later."""
        halt.now()

    def beside(self, step: int) -> Callable[[Thread], Any]:
        return lambda thread: shown(thread.beside(step), self.shell.server.url)

    def new(self) -> Any:
        return shown(Thread(), self.shell.server.url)


def wire(chat: Chat, view: ChatView, page: gr.Blocks, tab: gr.Tab) -> list[Any]:
    """Connect the chat; returns the events that answer, so that others can cancel them."""
    key = chat.shell.key
    asked = [
        view.box.submit(chat.send, [view.box, view.thread, view.halt, key, *view.asking], view.outputs, **QUIET),
        view.chatbot.retry(chat.again, [view.thread, view.halt, key, *view.asking], view.outputs, **QUIET),
        view.chatbot.edit(chat.edit, [view.thread, view.halt, key, *view.asking], view.outputs, **QUIET),
    ]
    view.box.stop(chat.stop, view.halt, None, **QUIET)
    for start in (view.fresh.click, view.chatbot.clear):
        start(chat.new, None, view.outputs, cancels=asked, **QUIET)
    for button, step in ((view.earlier, -1), (view.later, 1)):
        button.click(chat.beside(step), view.thread, view.outputs, **QUIET)
    moments = [page.load, view.voice.focus, key.submit, tab.select]
    gr.on(moments, chat.voices, [view.voice, key], view.voice, show_progress="hidden", **LATEST)
    return asked
