"""A thread as messages of a chatbot: under every answer a line of facts that opens to the raw request."""

from typing import Any

from ..answer import footer, raw
from ..thread import Thread, Turn


def transcript(thread: Thread, url: str) -> list[dict[str, Any]]:
    """Messages as Gradio's chatbot takes them."""
    messages: list[dict[str, Any]] = []
    for turn, facts in rows(thread):
        if facts:
            closed = {"title": footer(turn), "status": "done"}
            messages.append({"role": "assistant", "content": raw(turn, url), "metadata": closed})
        else:
            messages.append({"role": turn.role, "content": words(turn)})
    return messages


def words(turn: Turn) -> str:
    """The text of a turn; for an answer that failed or broke off also the server's reason."""
    error = turn.details.get("error")
    if turn.content:
        return f"{turn.content}\n\n*Interrupted: {error}*" if error else turn.content
    return f"*No answer: {error}*" if error else "*Empty answer.*"


def turn_at(thread: Thread, index: Any) -> Turn | None:
    """The turn of a message; an event has its index, or that of its first part."""
    place = index[0] if isinstance(index, list | tuple) else index
    shown = rows(thread)
    return shown[place][0] if isinstance(place, int) and 0 <= place < len(shown) else None


def rows(thread: Thread) -> list[tuple[Turn, bool]]:
    """(turn, is this message its line of facts?). An answer that is still running has no facts yet."""
    shown: list[tuple[Turn, bool]] = []
    for turn in thread.path():
        if not turn.is_answer:
            shown.append((turn, False))
        elif turn.content or not turn.details.get("under_way"):
            shown += [(turn, False), *[(turn, True)] * (not turn.details.get("under_way"))]
    return shown
