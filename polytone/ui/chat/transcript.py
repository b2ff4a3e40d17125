"""A thread as the messages of a chatbot: under every answer a line of facts that opens to the raw request."""

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
    """What was said; where an answer did not come or broke off, why, in the server's words."""
    error = turn.details.get("error")
    if turn.content:
        return f"{turn.content}\n\n*It broke off: {error}*" if error else turn.content
    return f"*No answer: {error}*" if error else "*Nothing was said.*"


def turn_at(thread: Thread, index: Any) -> Turn | None:
    """The turn behind a message; an event tells its index, or that of its first part."""
    place = index[0] if isinstance(index, list | tuple) else index
    shown = rows(thread)
    return shown[place][0] if isinstance(place, int) and 0 <= place < len(shown) else None


def rows(thread: Thread) -> list[tuple[Turn, bool]]:
    """(turn, whether this message is its line of facts). An answer that is just coming has no facts yet."""
    shown: list[tuple[Turn, bool]] = []
    for turn in thread.path():
        if not turn.is_answer:
            shown.append((turn, False))
        elif turn.content or not turn.details.get("under_way"):
            shown += [(turn, False), *[(turn, True)] * (not turn.details.get("under_way"))]
    return shown
