"""Records to conversations: messages, ShareGPT, Alpaca, prompt and completion, verdicts and preferences."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from polytone.contract.rows import Conversation, describe

from .findings import Finding, Kind, Place, found

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function_response": "tool",
    "observation": "tool",
}
KNOWN = "messages, conversations, instruction and output, or prompt and completion"
Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A usable row: the conversation, the format it came in, and the keys that are not part of it."""

    place: Place
    format: str
    conversation: Conversation
    extra: dict[str, Any]


class NoConversationError(Exception):
    """A record that cannot be made a conversation; the message says why."""


@dataclass(frozen=True)
class Format:
    """How one kind of record is told and read. The first format whose `keys` a record has is the record's."""

    name: str
    keys: frozenset[str]
    uses: frozenset[str]
    turns: Callable[[Fields], object]


def formats() -> list[Format]:
    def format_of(name: str, keys: str, more: str, turns: Callable[[Fields], object]) -> Format:
        return Format(name, frozenset(keys.split()), frozenset([*keys.split(), *more.split()]), turns)

    return [
        format_of("messages", "messages", "", lambda record: listed(record, "messages")),
        format_of("sharegpt", "conversations", "", sharegpt_turns),
        format_of("alpaca", "instruction output", "input", alpaca_turns),
        format_of("preference", "prompt chosen rejected", "", preference_turns),
        format_of("verdict", "prompt completion label", "", completion_turns),
        format_of("prompt_completion", "prompt completion", "", completion_turns),
    ]


def read_row(place: Place, record: dict[str, Any], known: list[Format]) -> Row | list[Finding]:
    """A record as a row, or what is wrong with it."""
    form = next((form for form in known if form.keys <= record.keys()), None)
    if form is None:
        there = ", ".join(map(str, record)) or "none"
        return [found(place, Kind.MALFORMED, f"has no conversation: its keys are {there}; needed are {KNOWN}")]
    try:
        conversation = Conversation.model_validate({"messages": form.turns(record)})
    except NoConversationError as error:
        return [found(place, Kind.MALFORMED, str(error))]
    except ValidationError as error:
        return broken(place, form.turns(record), [describe(problem) for problem in error.errors(include_url=False)])
    return Row(place, form.name, conversation, {key: value for key, value in record.items() if key not in form.uses})


def broken(place: Place, turns: object, problems: list[str]) -> list[Finding]:
    """The problems by their kind, one finding a kind."""
    by_kind: dict[Kind, list[str]] = {}
    for problem in problems:
        by_kind.setdefault(kind_of(turns, problem), []).append(problem)
    return [found(place, kind, "; ".join(words)) for kind, words in by_kind.items()]


def kind_of(turns: object, problem: str) -> Kind:
    if not isinstance(turns, list):
        return Kind.MALFORMED
    roles = {str(turn.get("role")) for turn in turns if isinstance(turn, dict)}
    if not turns or "is empty;" in problem:
        return Kind.EMPTY
    if problem.startswith(("messages: List", "row:", "messages: Value")) or "turn" in problem:
        return Kind.ROLE_ORDER if {"user", "assistant"} <= roles else Kind.ONE_SIDED
    return Kind.MALFORMED


def listed(record: Fields, key: str) -> list[Any]:
    if not isinstance(record[key], list):
        raise NoConversationError(f"{key}: is {type(record[key]).__name__}, not a list of turns")
    return list(record[key])


def sharegpt_turns(record: Fields) -> object:
    return [sharegpt_turn(number, turn) for number, turn in enumerate(listed(record, "conversations"))]


def sharegpt_turn(number: int, turn: object) -> object:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    speaker = SPEAKERS.get(str(turn["from"]).lower())
    if speaker is None:
        raise NoConversationError(f"conversations.{number}.from: {turn['from']!r} is none of {', '.join(SPEAKERS)}")
    return {"role": speaker, "content": turn.get("value")}


def alpaca_turns(record: Fields) -> object:
    asked = record["instruction"]
    if isinstance(asked, str) and record.get("input"):
        asked = f"{asked}\n\n{record['input']}"
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": record["output"]}]


def completion_turns(record: Fields) -> object:
    return [*as_turns(record["prompt"], "user"), *as_turns(record["completion"], "assistant")]


def preference_turns(record: Fields) -> object:
    """Both replies have to be conversations; the chosen one is looked at."""
    asked = as_turns(record["prompt"], "user")
    other = [*asked, *as_turns(record["rejected"], "assistant")]
    try:
        Conversation.model_validate({"messages": other})
    except ValidationError as error:
        problems = "; ".join(describe(problem) for problem in error.errors(include_url=False))
        raise NoConversationError(f"rejected: {problems}") from None
    return [*asked, *as_turns(record["chosen"], "assistant")]


def as_turns(value: object, role: str) -> list[Any]:
    """A list of turns as it is, text as one turn."""
    return list(value) if isinstance(value, list) else [{"role": role, "content": value}]
