"""The compare tab: one question to several voices at once, names hidden if wanted, votes and where they stand."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from random import Random, SystemRandom
from typing import Any

import gradio as gr

from ..api import Api, ApiError
from ..markup import told_badly
from ..shell import LATEST, QUIET, Shell, told, voice_choices, warn
from ..sides import Halt
from .asking import Asking, asked_with, compared
from .blind import PLACES
from .comparison import Session
from .prompts import Prompt, PromptsError, asked, prompts_of
from .view import CompareView, shown
from .votes import LEAVE_THE_TEXT, vote_of

TOO_FEW = "Choose two to four voices to compare."
NO_VOICE = "No voice answers yet. The server may still be starting: reload the voices shortly."


@dataclass(frozen=True)
class Compare:
    """What the tab does when something is clicked; `random` shuffles what is compared blind."""

    shell: Shell
    random: Random

    async def load(self, chosen: list[str] | None, key: str, admin: str) -> Any:
        """The voices to choose from; the first two are chosen where nothing is."""
        api = self.shell.api(key)
        try:
            cards = await api.models()
        except ApiError as error:
            return gr.skip(), gr.update(value=told_badly(f"The voices cannot be listed. {told(error)}"), visible=True)
        voices = voice_choices(cards)
        chosen = chosen or [model for _, model in voices[:2]]
        choices = [*voices, *((version, version) for version in await versions_of(self.shell.api(admin), cards))]
        known = {model for _, model in choices}
        choices += [(model, model) for model in chosen if model not in known]
        return gr.update(choices=choices, value=chosen), gr.update(value=told_badly(NO_VOICE), visible=not voices)

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
        """Take a new set, and ask its first prompt."""
        try:
            session = replace(session, prompts=prompts_of(lines, file), asked=0)
        except PromptsError as error:
            gr.Warning(str(error), title="No set of prompts")
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
        """Ask all voices at once; every update is what the tab shows then."""
        if not 2 <= len(asking.models) <= len(PLACES):
            raise gr.Error(TOO_FEW, title="Not enough voices")
        comparison = asking.comparison(prompt, self.random)
        async for moment in compared(self.shell.api(asking.key), session, comparison, halt.begin()):
            yield shown(moment)

    async def stop(self, halt: Halt) -> None:
        """What is under way ends by itself, so that nothing of it comes after."""
        halt.now()

    async def vote(self, session: Session, key: str, tester: str, event: gr.EventData) -> Any:
        """Give a vote to the server; names are shown once it has it."""
        comparison, given = session.comparison, vote_of(event)
        if comparison is None or not comparison.votable:
            return shown(session)
        try:
            await self.shell.api(key).post("/v1/feedback", comparison.preference(given, tester))
        except ApiError as error:
            warn(error)
            return shown(session)
        return shown(session.voted(given))


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
    """Versions that can be asked for by their id: those of rollouts, and with an admin key all that are ready."""
    found = {part["version"] for card in cards for part in card.get("versions") or ()}
    try:
        adapters = (await api.get("/admin/adapters"))["adapters"]
    except ApiError:
        adapters = []
    found |= {one["version"] for adapter in adapters for one in adapter["versions"] if one["state"] == "ready"}
    return sorted(found)
