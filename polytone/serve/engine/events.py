"""What an answer says, from the engine's response or from the events of its stream."""

import hashlib
import json
from collections.abc import Iterable, Sequence

from .base import Body

DATA = "data: "


def reply_of_response(response: Body) -> tuple[Body | None, str | None]:
    """The first choice's message and why it ended."""
    choices = response.get("choices") or [{}]
    choice = choices[0]
    message = choice.get("message") or {"role": "assistant", "content": choice.get("text")}
    said = {key: message[key] for key in ("role", "content", "tool_calls") if message.get(key)}
    return said, choice.get("finish_reason")


def reply_of_events(events: Sequence[str]) -> tuple[Body | None, str | None]:
    """The same, put together from a stream's chunks; of a stream that was broken off, what there is."""
    text: list[str] = []
    calls: dict[int, Body] = {}
    reason: str | None = None
    for choice in first_choices(events):
        delta = choice.get("delta") or {"content": choice.get("text")}
        text.append(delta.get("content") or "")
        for call in delta.get("tool_calls") or ():
            add_call(calls, call)
        reason = choice.get("finish_reason") or reason
    said: Body = {"role": "assistant", "content": "".join(text)}
    if calls:
        said["tool_calls"] = [calls[index] for index in sorted(calls)]
    return said, reason


def first_choices(events: Iterable[str]) -> Iterable[Body]:
    for event in events:
        if event.startswith(DATA + "{"):
            for choice in json.loads(event.removeprefix(DATA)).get("choices") or ():
                if choice.get("index", 0) == 0:
                    yield choice


def add_call(calls: dict[int, Body], part: Body) -> None:
    """A tool call comes in parts: its name once, its arguments piece by piece."""
    call = calls.setdefault(part.get("index", 0), {"type": "function", "function": {"name": "", "arguments": ""}})
    if part.get("id"):
        call["id"] = part["id"]
    for key, value in (part.get("function") or {}).items():
        call["function"][key] = call["function"].get(key, "") + (value or "")


def completion_id(answer: Body | Sequence[str]) -> str | None:
    """The id that feedback cites, of a response or of the events so far."""
    if isinstance(answer, dict):
        return answer.get("id")
    if not answer or not answer[0].startswith(DATA + "{"):
        return None
    found = json.loads(answer[0].removeprefix(DATA)).get("id")
    return found if isinstance(found, str) else None


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
