"""Records to rows: messages, ShareGPT, Alpaca, prompt and completion, verdicts and preferences."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from polytone.contract.models import describe_problem
from polytone.contract.rows import Conversation, Preference, Verdict

from .findings import Finding, Kind, Place, finding

ROLES = {
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
KNOWN_KEYS = "messages, conversations, instruction and output, or prompt and completion"
LABELS = {"true": True, "false": False}  # CSV has no booleans
Fields = Mapping[str, Any]
Content = Conversation | Verdict | Preference


@dataclass(frozen=True)
class Row:
    """A usable row.

    `content` is what it holds, `conversation` its turns (of a preference those with the chosen reply), `format` the
    format it came in, and `extra` the keys that are not part of it.
    """

    place: Place
    format: str
    content: Content
    conversation: Conversation
    extra: dict[str, Any]


class NoConversationError(Exception):
    """A record that cannot be made a row; the message says why."""


@dataclass(frozen=True)
class Format:
    """A format of records: the keys that identify it, others it may use, and how its fields become those of `kind`."""

    name: str
    keys: frozenset[str]
    optional: frozenset[str]
    kind: type[Content]
    convert: Callable[[Fields], dict[str, Any]]


def read_row(place: Place, record: dict[str, Any]) -> Row | list[Finding]:
    """A record as a row of the first format whose keys it has, or its problems."""
    form = next((form for form in FORMATS if form.keys <= record.keys()), None)
    if form is None:
        keys = ", ".join(map(str, record)) or "none"
        return [finding(place, Kind.MALFORMED, f"has no conversation: its keys are {keys}; needed are {KNOWN_KEYS}")]
    extra = {key: value for key, value in record.items() if key not in form.keys | form.optional}
    fields: dict[str, Any] = {}
    try:
        fields = form.convert(record)
        content = form.kind.model_validate({**extra, **fields})
    except NoConversationError as error:
        return [finding(place, Kind.MALFORMED, str(error))]
    except ValidationError as error:
        return problems_of(place, fields, error)
    return Row(place, form.name, content, conversation_of(content), extra)


def conversation_of(content: Content) -> Conversation:
    match content:
        case Conversation():
            return content
        case Verdict():
            return content.conversation()
        case Preference():
            return Conversation(messages=[*content.prompt, *content.chosen])


def problems_of(place: Place, fields: dict[str, Any], error: ValidationError) -> list[Finding]:
    """The problems by their kind, one finding a kind."""
    turns = [turn for value in fields.values() if isinstance(value, list) for turn in value]
    roles = {str(turn.get("role")) for turn in turns if isinstance(turn, dict)}
    by_kind: dict[Kind, list[str]] = {}
    for problem in error.errors(include_url=False):
        where, what = problem["loc"], describe_problem(problem)
        if problem["type"] == "too_short" or not where:
            in_order = Kind.ROLE_ORDER if {"user", "assistant"} <= roles else Kind.ONE_SIDED
            kind = in_order if turns else Kind.EMPTY
            what = f"{where[0]}: has too few turns" if where else what.removeprefix("row: ")
        elif where[-1] == "content" and problem["type"] == "value_error":
            kind = Kind.EMPTY
        else:
            kind = Kind.MALFORMED
        by_kind.setdefault(kind, []).append(what)
    return [finding(place, kind, "; ".join(what)) for kind, what in by_kind.items()]


def from_messages(record: Fields) -> dict[str, Any]:
    return {"messages": list_of(record, "messages")}


def from_sharegpt(record: Fields) -> dict[str, Any]:
    turns = list_of(record, "conversations")
    return {"messages": [sharegpt_turn(number, turn) for number, turn in enumerate(turns)]}


def sharegpt_turn(number: int, turn: object) -> object:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    role = ROLES.get(str(turn["from"]).lower())
    if role is None:
        raise NoConversationError(f"conversations.{number}.from: {turn['from']!r} is none of {', '.join(ROLES)}")
    return {"role": role, "content": turn.get("value")}


def from_alpaca(record: Fields) -> dict[str, Any]:
    instruction = record["instruction"]
    if isinstance(instruction, str) and record.get("input"):
        instruction = f"{instruction}\n\n{record['input']}"
    return {"messages": [*as_turns(instruction, "user"), *as_turns(record["output"], "assistant")]}


def from_prompt(record: Fields) -> dict[str, Any]:
    return {"messages": [*as_turns(record["prompt"], "user"), *as_turns(record["completion"], "assistant")]}


def from_verdict(record: Fields) -> dict[str, Any]:
    label = record["label"]
    return {
        "prompt": as_turns(record["prompt"], "user"),
        "completion": as_turns(record["completion"], "assistant"),
        "label": LABELS.get(label.lower(), label) if isinstance(label, str) else label,
    }


def from_preference(record: Fields) -> dict[str, Any]:
    return {
        "prompt": as_turns(record["prompt"], "user"),
        "chosen": as_turns(record["chosen"], "assistant"),
        "rejected": as_turns(record["rejected"], "assistant"),
    }


def list_of(record: Fields, key: str) -> list[Any]:
    if not isinstance(record[key], list):
        raise NoConversationError(f"{key}: is {type(record[key]).__name__}, not a list of turns")
    return list(record[key])


def as_turns(value: object, role: str) -> list[Any]:
    """A list of turns as it is, text as one turn."""
    return list(value) if isinstance(value, list) else [{"role": role, "content": value}]


def format_of(
    name: str, keys: str, optional: str, kind: type[Content], convert: Callable[[Fields], dict[str, Any]]
) -> Format:
    return Format(name, frozenset(keys.split()), frozenset(optional.split()), kind, convert)


FORMATS = (
    format_of("messages", "messages", "", Conversation, from_messages),
    format_of("sharegpt", "conversations", "", Conversation, from_sharegpt),
    format_of("alpaca", "instruction output", "input", Conversation, from_alpaca),
    format_of("preference", "prompt chosen rejected", "", Preference, from_preference),
    format_of("verdict", "prompt completion label", "", Verdict, from_verdict),
    format_of("prompt_completion", "prompt completion", "", Conversation, from_prompt),
)
