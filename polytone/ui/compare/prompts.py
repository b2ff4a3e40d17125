"""A set of prompts to work through: lines of text, or JSON lines with `messages` or `prompt`."""

import json
from pathlib import Path
from typing import Any

LARGEST_FILE = 2_000_000
MOST_PROMPTS = 1_000
ROLES = ("system", "user", "assistant", "tool", "developer")

Prompt = tuple[dict[str, Any], ...]


class PromptsError(Exception):
    """What was given is no set of prompts; the message says where and why."""


def asked(text: str) -> Prompt:
    """One question as the messages of a request."""
    return ({"role": "user", "content": text.strip()},)


def prompts_of(lines: str, file: str | None) -> tuple[Prompt, ...]:
    """The prompts of a text box and then those of a file.

    Raises:
        PromptsError: a line or the file cannot be used, or there are none or too many prompts.
    """
    prompts = [*prompts_of_lines(lines), *(prompts_of_file(Path(file)) if file else ())]
    if not prompts:
        raise PromptsError("There are no prompts: write one a line, or choose a file.")
    if len(prompts) > MOST_PROMPTS:
        raise PromptsError(f"{len(prompts)} prompts are more than the {MOST_PROMPTS} that are taken at once.")
    return tuple(prompts)


def prompts_of_lines(text: str) -> list[Prompt]:
    return [asked(line) for line in text.splitlines() if line.strip()]


def prompts_of_file(path: Path) -> list[Prompt]:
    """JSON lines if it is named so, else a prompt a line."""
    if path.stat().st_size > LARGEST_FILE:
        raise PromptsError(f"{path.name} is larger than {LARGEST_FILE // 1_000_000} MB.")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise PromptsError(f"{path.name} is not text in UTF-8.") from None
    if path.suffix.lower() != ".jsonl":
        return prompts_of_lines(text)
    numbered = enumerate(text.split("\n"), 1)
    return [prompt_of_row(line, f"{path.name}, line {number}") for number, line in numbered if line.strip()]


def prompt_of_row(line: str, where: str) -> Prompt:
    """The messages of a row up to the last that asks: the answer of a row to train on is left out."""
    try:
        row = json.loads(line)
    except ValueError:
        raise PromptsError(f"{where}: this is not JSON.") from None
    given = (row.get("messages") or row.get("prompt")) if isinstance(row, dict) else None
    if isinstance(given, str) and given.strip():
        return asked(given)
    if not isinstance(given, list) or not given or not all(map(is_message, given)):
        raise PromptsError(f'{where}: it needs "messages", each with a role and a content, or a "prompt".')
    while given and given[-1]["role"] == "assistant":
        given = given[:-1]
    if not any(message["role"] == "user" for message in given):
        raise PromptsError(f"{where}: nobody asks anything in these messages.")
    return tuple({"role": message["role"], "content": message["content"]} for message in given)


def is_message(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ROLES and isinstance(message.get("content"), str)


def as_text(prompt: Prompt) -> str:
    """A prompt to read: the question alone, or who says what."""
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)
