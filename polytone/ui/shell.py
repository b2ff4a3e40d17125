"""The parts that every tab needs: the server, the keys and names of the visitor, and messages of errors."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from .api import Api, ApiError, Server

ANONYMOUS = "tester"
TESTERS_AT_ONCE = 64
# For events: not part of Gradio's API, and for many testers at once (Gradio's default is one).
EVENT: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": TESTERS_AT_ONCE}
QUIET: dict[str, Any] = {**EVENT, "show_progress": "hidden"}
# For `gr.on` with several events that reload the same: one after the other, so that a slow load does not replace a
# later one.
LATEST: dict[str, Any] = {**EVENT, "trigger_mode": "always_last"}


@dataclass(frozen=True)
class Shell:
    """Inputs of events: the inference key, the admin key, and the name for feedback."""

    server: Server
    key: gr.Textbox
    admin: gr.Textbox
    tester: gr.Textbox

    def api(self, key: str | None) -> Api:
        return self.server.api(key)


def annotator(tester: str | None) -> dict[str, str]:
    """The annotator, as POST /v1/feedback takes it."""
    return {"id": (tester or "").strip()[:100] or ANONYMOUS, "kind": "human"}


def error_text(error: ApiError) -> str:
    """A refusal in a few sentences, with a hint where a key is missing."""
    if error.code in ("key_missing", "key_invalid"):
        return "This server needs a key. Enter yours at the top of the page."
    if error.code == "key_of_other_kind":
        return "This tab needs another kind of key: an inference key to chat, an admin key to manage."
    return " ".join([error.message, *(f"• {reason}" for reason in error.reasons)])


def warn(error: ApiError) -> None:
    gr.Warning(error_text(error))


def voice_choices(cards: list[dict[str, object]]) -> list[tuple[str, str]]:
    """(label, model) of every voice, and of the base at the end."""
    voices = sorted(cards, key=lambda card: (card.get("parent") is None, str(card["id"])))
    return [(voice_label(card), str(card["id"])) for card in voices]


def voice_label(card: dict[str, object]) -> str:
    name = str(card["id"])
    digest = str(card.get("version", "")).partition("@")[2]
    return f"{name} ({digest})" if digest else f"{name} (base)"
