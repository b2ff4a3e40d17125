"""The review tab: one answer after the other, each leased to a reviewer and decided once."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import gradio as gr

from ..api import ApiError
from ..markup import failure, paragraph, success
from ..shell import LATEST, QUIET, Shell, annotator, error_text, warn
from .item import EMPTY, LeasedReview, queue_table, waiting
from .view import ANYONE, ReviewView, shown

GONE = ("review_decided", "review_leased", "review_not_found", "completion_not_found")
DONE = {"accept": "Accepted.", "edit": "Your correction is saved.", "reject": "Rejected, and left out of exports."}
UNCHANGED = "Change the text first, or accept the answer as it is."
STILL_LEASED = "This answer is still reserved for you: decide on it first."
FOCUS = """() => setTimeout(() => {
  (document.querySelector("#review-text textarea") || document.getElementById("review-accept"))?.focus();
}, 50)"""


@dataclass(frozen=True)
class Review:
    """Handlers of the tab."""

    shell: Shell

    async def load(self, voice: str | None, key: str) -> Any:
        """The queue's counts, and the voices to choose from."""
        try:
            adapters = (await self.shell.api(key).get("/admin/adapters"))["adapters"]
        except ApiError as error:
            return failure(f"Cannot load the queue. {error_text(error)}"), gr.skip(), gr.skip()
        names = [adapter["name"] for adapter in adapters]
        choices = [ANYONE, *((name, name) for name in names)]
        return *await self.count(key), gr.update(choices=choices, value=voice if voice in names else "")

    async def count(self, key: str) -> tuple[Any, Any]:
        try:
            reviews = (await self.shell.api(key).get("/admin/reviews"))["reviews"]
        except ApiError as error:
            return failure(f"Cannot load the queue. {error_text(error)}"), gr.skip()
        return paragraph(waiting(reviews)), queue_table(reviews)

    async def following(self, leased: LeasedReview | None, voice: str | None, key: str, tester: str) -> Any:
        """The next item; if that is the leased one, the text written so far stays."""
        updates = await self.lease(voice, key, tester)
        if leased is not None and updates[0] is not None and updates[0].completion == leased.completion:
            return [updates[0], gr.update(value=success(STILL_LEASED), visible=True), *[gr.skip()] * (len(updates) - 2)]
        return updates

    async def lease(self, voice: str | None, key: str, tester: str, before: str = "", bad: bool = False) -> list[Any]:
        """The next item, after a sentence about the one before."""
        reviewer = annotator(tester)["id"]
        body = {"reviewer": reviewer, **({"adapter": voice} if voice else {})}
        try:
            item = (await self.shell.api(key).post("/admin/reviews/next", body))["item"]
        except ApiError as error:
            return shown(None, f"{before} Cannot load the next answer. {error_text(error)}".strip(), bad=True)
        if item is None:
            return shown(None, f"{before} {EMPTY}".strip())
        return shown(LeasedReview(item, reviewer), f"{before} This is the next answer.".strip() if before else "", bad)

    async def accept(self, leased: LeasedReview | None, voice: str | None, key: str, tester: str) -> Any:
        return await self.decide("accept", leased, voice, key, tester)

    async def reject(self, leased: LeasedReview | None, voice: str | None, key: str, tester: str) -> Any:
        return await self.decide("reject", leased, voice, key, tester)

    async def save(self, text: str, leased: LeasedReview | None, voice: str | None, key: str, tester: str) -> Any:
        if not text.strip() or (leased is not None and text.strip() == (leased.reply or "").strip()):
            gr.Info(UNCHANGED)
            return gr.skip()
        return await self.decide("edit", leased, voice, key, tester, text=text)

    async def decide(
        self, decision: str, leased: LeasedReview | None, voice: str | None, key: str, tester: str, **more: str
    ) -> Any:
        """Send a decision and go on; an item that someone else has taken is left to them."""
        if leased is None:
            return gr.skip()
        body = {"reviewer": leased.reviewer, "decision": decision, **more}
        try:
            await self.shell.api(key).post(f"/admin/reviews/{quote(leased.completion, safe='')}", body)
        except ApiError as error:
            if error.code not in GONE:
                warn(error)
                return gr.skip()
            return await self.lease(voice, key, tester, f"Your decision was not saved: {error_text(error)}", bad=True)
        return await self.lease(voice, key, tester, DONE[decision])


def review_tab(shell: Shell, page: gr.Blocks, tab: gr.Tab) -> None:
    view, does = ReviewView.build(), Review(shell)
    asking = [view.voice, shell.admin, shell.tester]
    deciding = [view.leased, *asking]
    decided = [
        view.following.click(does.following, deciding, view.outputs, **QUIET),
        view.accept.click(does.accept, deciding, view.outputs, **QUIET),
        view.reject.click(does.reject, deciding, view.outputs, **QUIET),
    ]
    saved = view.save.click(does.save, [view.text, *deciding], view.outputs, **QUIET)
    for event in (*decided, saved):
        event.then(does.count, shell.admin, [view.waiting, view.counts], **QUIET)
    saved.then(None, js=FOCUS)
    view.edit.click(lambda: gr.update(visible=True), None, view.editor, **QUIET).then(None, js=FOCUS)
    view.cancel.click(lambda: gr.update(visible=False), None, view.editor, **QUIET)
    loaded = [view.waiting, view.counts, view.voice]
    gr.on(
        [tab.select, shell.admin.submit], does.load, [view.voice, shell.admin], loaded, show_progress="hidden", **LATEST
    )
