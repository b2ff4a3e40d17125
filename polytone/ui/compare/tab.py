"""The compare tab: one question to several voices at once, blind if wanted, with votes and win rates."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from random import Random, SystemRandom
from typing import Any

import gradio as gr

from ..api import Api, ApiError
from ..markup import failure
from ..shell import LATEST, QUIET, Shell, error_text, voice_choices, warn
from ..sides import Halt
from .asking import Asking, asked_with, compared
from .blind import PLACES
from .comparison import Session
from .prompts import Prompt, PromptsError, asked, prompts_of
from .view import CompareView, shown
from .votes import LEAVE_THE_TEXT, vote_of

TOO_FEW = "Choose two to four voices to compare."
NO_VOICE = "No voice is available yet. The server may still be starting: reload the voices shortly."


@dataclass(frozen=True)
class Compare:
    """Handlers of the tab; `random` shuffles blind comparisons."""

    shell: Shell
    random: Random

    async def load(self, chosen: list[str] | None, key: str, admin: str) -> Any:
        """The voices to choose from; the first two are the default."""
        api = self.shell.api(key)
        try:
            cards = await api.models()
        except ApiError as error:
            return gr.skip(), gr.update(value=failure(f"Cannot list the voices. {error_text(error)}"), visible=True)
        voices = voice_choices(cards)
        chosen = chosen or [model for _, model in voices[:2]]
        choices = [*voices, *((version, version) for version in await versions_of(self.shell.api(admin), cards))]
        listed = {model for _, model in choices}
        choices += [(model, model) for model in chosen if model not in listed]
        return gr.update(choices=choices, value=chosen), gr.update(value=failure(NO_VOICE), visible=not voices)

    async def ask(self, text: str, session: Session, halt: Halt, *asking: Any) -> AsyncIterator[Any]:
        if not text.strip():
            gr.Info("Write a question first.")
            yield gr.skip()
            return
        async for update in self.compare(asked(text), session, halt, asked_with(*asking)):
            yield ["", *update]

    async def start(
        self, lines: str, file: str | None, session: Session, halt: Halt, *asking: Any
    ) -> AsyncIterator[Any]:
        """Start a new set with its first prompt."""
        try:
            session = replace(session, prompts=prompts_of(lines, file), asked=0)
        except PromptsError as error:
            gr.Warning(str(error), title="Prompts")
            yield gr.skip()
            return
        async for update in self.following(session, halt, *asking):
            yield update

    async def following(self, session: Session, halt: Halt, *asking: Any) -> AsyncIterator[Any]:
        """The next prompt of the set."""
        if session.asked == len(session.prompts):
            yield gr.skip()
            return
        prompt = session.prompts[session.asked]
        session = replace(session, asked=session.asked + 1)
        async for update in self.compare(prompt, session, halt, asked_with(*asking)):
            yield update

    async def after_vote(self, session: Session, halt: Halt, *asking: Any) -> AsyncIterator[Any]:
        if not session.due:
            yield gr.skip()
            return
        async for update in self.following(session, halt, *asking):
            yield update

    async def again(self, session: Session, halt: Halt, *asking: Any) -> AsyncIterator[Any]:
        if session.comparison is None:
            yield gr.skip()
            return
        async for update in self.compare(session.comparison.prompt, session, halt, asked_with(*asking)):
            yield update

    async def compare(self, prompt: Prompt, session: Session, halt: Halt, asking: Asking) -> AsyncIterator[list[Any]]:
        """Ask all voices at once; every update has values for `CompareView.outputs`."""
        if not 2 <= len(asking.models) <= len(PLACES):
            raise gr.Error(TOO_FEW, title="Not enough voices")
        comparison = asking.comparison(prompt, self.random)
        async for moment in compared(self.shell.api(asking.key), session, comparison, halt.begin()):
            yield shown(moment)

    async def stop(self, halt: Halt) -> None:
        """End the running answers by their own signal, so that nothing of them arrives later."""
        halt.now()

    async def vote(self, session: Session, key: str, tester: str, event: gr.EventData) -> Any:
        """Send a vote to the server, and show the names then."""
        comparison, choice = session.comparison, vote_of(event)
        if comparison is None or not comparison.votable:
            return shown(session)
        try:
            await self.shell.api(key).post("/v1/feedback", comparison.preference(choice, tester))
        except ApiError as error:
            warn(error)
            return shown(session)
        return shown(session.voted(choice))


def compare_tab(shell: Shell, page: gr.Blocks, tab: gr.Tab) -> None:
    view, does = CompareView.build(), Compare(shell, SystemRandom())
    asking = [view.state, view.halt, shell.key, *view.asking]
    clicks = [button.click for button in view.votes.buttons]
    voter = [view.state, shell.key, shell.tester]
    voted = gr.on(clicks, does.vote, voter, view.outputs, trigger_mode="once", **QUIET)
    asks = [view.box.submit, view.ask.click]
    gr.on(asks, does.ask, [view.box, *asking], [view.box, *view.outputs], **QUIET)
    view.start.click(does.start, [view.lines, view.file, *asking], view.outputs, **QUIET)
    view.following.click(does.following, asking, view.outputs, **QUIET)
    view.again.click(does.again, asking, view.outputs, **QUIET)
    voted.then(does.after_vote, asking, view.outputs, **QUIET)
    view.stop.click(does.stop, view.halt, None, **QUIET)
    view.box.submit(None, js=LEAVE_THE_TEXT)
    view.votes.listen(page)
    moments = [tab.select, view.reload.click, shell.key.submit, shell.admin.submit]
    who = [view.models, shell.key, shell.admin]
    gr.on(moments, does.load, who, [view.models, view.trouble], show_progress="hidden", **LATEST)


async def versions_of(api: Api, cards: list[dict[str, Any]]) -> list[str]:
    """Versions that answer under their id: those of rollouts, and with an admin key all that are ready."""
    versions = {part["version"] for card in cards for part in card.get("versions") or ()}
    try:
        adapters = (await api.get("/admin/adapters"))["adapters"]
    except ApiError:
        adapters = []
    versions |= {one["version"] for adapter in adapters for one in adapter["versions"] if one["state"] == "ready"}
    return sorted(versions)
