"""What every tab is given: the server, who is asking, and how a refusal is told."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from .api import Api, ApiError, Server

ANONYMOUS = "tester"
TESTERS_AT_ONCE = 64
# For events: not offered as an API of Gradio's, and for as many testers at once (Gradio's own default is one).
EVENT: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": TESTERS_AT_ONCE}
QUIET: dict[str, Any] = {**EVENT, "show_progress": "hidden"}
# For `gr.on`, where several moments show the same anew: one after the other, so that an earlier look that took longer
# does not replace a later one.
LATEST: dict[str, Any] = {**EVENT, "trigger_mode": "always_last"}


@dataclass(frozen=True)
class Shell:
    """Inputs of events: the key to chat with, the one to manage with, and the name that feedback is given under."""

    server: Server
    key: gr.Textbox
    admin: gr.Textbox
    tester: gr.Textbox

    def api(self, key: str | None) -> Api:
        return self.server.api(key)


def annotator(tester: str | None) -> dict[str, str]:
    """Who says it, as POST /v1/feedback takes it."""
    return {"id": (tester or "").strip()[:100] or ANONYMOUS, "kind": "human"}


def told(error: ApiError) -> str:
    """A refusal as one sentence or a few; keys are asked for where they are missing."""
    if error.code in ("key_missing", "key_invalid"):
        return "This server asks for a key. Enter yours at the top of the page."
    if error.code == "key_of_other_kind":
        return "This part of the page needs a key of another kind: an inference key to chat, an admin key to manage."
    return " ".join([error.message, *(f"• {reason}" for reason in error.reasons)])


def warn(error: ApiError) -> None:
    gr.Warning(told(error))


def voice_choices(cards: list[dict[str, object]]) -> list[tuple[str, str]]:
    """(label, model) of everything that answers: the voices first, the base last."""
    voices = sorted(cards, key=lambda card: (card.get("parent") is None, str(card["id"])))
    return [(voice_label(card), str(card["id"])) for card in voices]


def voice_label(card: dict[str, object]) -> str:
    name = str(card["id"])
    digest = str(card.get("version", "")).partition("@")[2]
    return f"{name} ({digest})" if digest else f"{name} (base)"
