"""Server-sent events of the engine, each parsed once, and the reply that a response or a stream gives."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from .base import Body

DATA = "data: "
DONE = "[DONE]"


class StreamEvent(NamedTuple):
    """One event. `text` is the event as the engine sent it and as the client receives it."""

    text: str
    id: str | None = None
    choices: Sequence[Body] = ()
    usage: Body | None = None
    error: Body | None = None
    done: bool = False


def parse_event(text: str) -> StreamEvent:
    """The event of a chat or text completion; one that is not a JSON object has its text only."""
    data = text.removeprefix(DATA)
    if not data.startswith("{"):
        return StreamEvent(text, done=data.startswith(DONE))
    try:
        chunk = json.loads(data)
    except ValueError:
        return StreamEvent(text)
    completion = chunk.get("id")
    return StreamEvent(
        text,
        completion if isinstance(completion, str) else None,
        chunk.get("choices") or (),
        chunk.get("usage"),
        chunk.get("error"),
    )


class ReplyBuilder:
    """The first choice's reply, from a whole response or put together from events. A stream that broke off gives what
    came before."""

    def __init__(self) -> None:
        self.completion: str | None = None
        self.finish_reason: str | None = None
        self._message: Body | None = None
        self._pieces: list[str] = []
        self._tool_calls: dict[int, Body] = {}

    def add_response(self, response: Body) -> None:
        choice = (response.get("choices") or [{}])[0]
        message = choice.get("message") or {"role": "assistant", "content": choice.get("text")}
        self._message = {key: message[key] for key in ("role", "content", "tool_calls") if message.get(key)}
        self.completion, self.finish_reason = response.get("id"), choice.get("finish_reason")

    def add(self, event: StreamEvent) -> None:
        self.completion = self.completion or event.id
        for choice in event.choices:
            if choice.get("index", 0) == 0:
                delta = choice.get("delta") or {"content": choice.get("text")}
                if delta.get("content"):
                    self._pieces.append(delta["content"])
                for call in delta.get("tool_calls") or ():
                    self._add_call(call)
                self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def message(self) -> Body:
        """OpenAI's message: role, content, tool calls."""
        if self._message is not None:
            return self._message
        message: Body = {"role": "assistant", "content": "".join(self._pieces)}
        if self._tool_calls:
            message["tool_calls"] = [self._tool_calls[index] for index in sorted(self._tool_calls)]
        return message

    def _add_call(self, part: Body) -> None:
        """A tool call comes in parts: its name once, its arguments piece by piece."""
        empty: Body = {"type": "function", "function": {"name": "", "arguments": ""}}
        call = self._tool_calls.setdefault(part.get("index", 0), empty)
        if part.get("id"):
            call["id"] = part["id"]
        for key, value in (part.get("function") or {}).items():
            call["function"][key] = call["function"].get(key, "") + (value or "")
