"""A set of prompts: lines of text, or JSON lines with `messages` or `prompt`."""

import json
from pathlib import Path
from typing import Any

LARGEST_FILE = 2_000_000
MOST_PROMPTS = 1_000
ROLES = ("system", "user", "assistant", "tool", "developer")

Prompt = tuple[dict[str, Any], ...]


class PromptsError(Exception):
    """The input is not a set of prompts; the message says where and why."""


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
        raise PromptsError("There are no prompts. Write one per line, or choose a file.")
    if len(prompts) > MOST_PROMPTS:
        raise PromptsError(f"{len(prompts)} prompts are more than the limit of {MOST_PROMPTS}.")
    return tuple(prompts)


def prompts_of_lines(text: str) -> list[Prompt]:
    return [asked(line) for line in text.splitlines() if line.strip()]


def prompts_of_file(path: Path) -> list[Prompt]:
    """The prompts of a .jsonl file, or of a text file with one per line."""
    if path.stat().st_size > LARGEST_FILE:
        raise PromptsError(f"{path.name} is larger than {LARGEST_FILE // 1_000_000} MB.")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise PromptsError(f"{path.name} is not UTF-8 text.") from None
    if path.suffix.lower() != ".jsonl":
        return prompts_of_lines(text)
    numbered = enumerate(text.split("\n"), 1)
    return [prompt_of_row(line, f"{path.name}, line {number}") for number, line in numbered if line.strip()]


def prompt_of_row(line: str, where: str) -> Prompt:
    """The messages of a row up to the last question; the answer of a training row is left out."""
    try:
        row = json.loads(line)
    except ValueError:
        raise PromptsError(f"{where}: is not JSON.") from None
    messages = (row.get("messages") or row.get("prompt")) if isinstance(row, dict) else None
    if isinstance(messages, str) and messages.strip():
        return asked(messages)
    if not isinstance(messages, list) or not messages or not all(map(is_message, messages)):
        raise PromptsError(f'{where}: needs "messages", each with a role and a content, or a "prompt".')
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not any(message["role"] == "user" for message in messages):
        raise PromptsError(f"{where}: has no question in its messages.")
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def is_message(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ROLES and isinstance(message.get("content"), str)


def as_text(prompt: Prompt) -> str:
    """A prompt as text: the question alone, or all messages with their roles."""
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)
