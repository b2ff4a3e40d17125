"""One answer as it is streamed: its text, its details, and the request as a curl command."""

import json
import shlex
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from .api import Api, ApiError
from .shell import error_text
from .thread import Turn


async def answered(api: Api, request: dict[str, Any], conversation: str | None, turn: Turn) -> AsyncIterator[Turn]:
    """The turn as it grows; the last one has every detail, or `error` in the details if the server refused."""
    began = time.monotonic()
    details: dict[str, Any] = {"model": request["model"], "request": request, "under_way": True}
    text = ""
    turn = replace(turn, details=details)
    yield turn
    try:
        async for chunk in api.chat(request, conversation):
            details = {**details, "version": chunk.get("model"), "usage": chunk.get("usage") or details.get("usage")}
            for choice in chunk.get("choices") or []:
                delta = (choice.get("delta") or {}).get("content") or ""
                if delta and "first_token_seconds" not in details:
                    details["first_token_seconds"] = round(time.monotonic() - began, 3)
                text += delta
                if choice.get("finish_reason"):
                    details["finish"] = choice["finish_reason"]
            details["seconds"] = round(time.monotonic() - began, 3)
            turn = replace(turn, content=text, completion_id=chunk.get("id"), details=details)
            yield turn
    except ApiError as error:
        turn = replace(turn, details={**details, "finish": "error", "error": error_text(error), "code": error.code})
    yield ended(turn)


def ended(turn: Turn, **more: Any) -> Turn:
    """The turn as it stays, complete or not."""
    return replace(turn, details={**{k: value for k, value in turn.details.items() if k != "under_way"}, **more})


def footer(turn: Turn) -> str:
    """Version, tokens and times in one line."""
    details = turn.details
    usage = details.get("usage") or {}
    parts = [str(details.get("version") or details.get("model") or "unknown")]
    if usage.get("completion_tokens") is not None:
        parts.append(f"{usage['completion_tokens']} tokens")
    if details.get("first_token_seconds") is not None:
        parts.append(f"first token {details['first_token_seconds']:.2f} s")
    if details.get("seconds") is not None:
        parts.append(f"{details['seconds']:.1f} s")
    if words := FINISHES.get(details.get("finish", "")):
        parts.append(words)
    return " · ".join(parts)


FINISHES = {
    "stopped": "stopped",
    "length": "cut off at the token limit",
    "error": "failed",
    "content_filter": "filtered",
}


def raw(turn: Turn, url: str) -> str:
    """Request and response as JSON, and a curl command with a variable in place of the key."""
    details = {key: value for key, value in turn.details.items() if key != "request"}
    request = turn.details.get("request", {})
    answer = {"id": turn.completion_id, "content": turn.content, **details}
    command = f'curl {shlex.quote(f"{url}/v1/chat/completions")} -H "Authorization: Bearer $POLYTONE_KEY" '
    command += f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(request, ensure_ascii=False))}"
    blocks = (
        ("Request", as_json(request), "json"),
        ("Response", as_json(answer), "json"),
        ("From a terminal", command, "bash"),
    )
    return "\n\n".join(f"**{title}**\n\n{fenced(text, language)}" for title, text, language in blocks)


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def fenced(text: str, language: str) -> str:
    """A code block that no text in it can end."""
    ticks = "```"
    while ticks in text:
        ticks += "`"
    return f"{ticks}{language}\n{text}\n{ticks}"
