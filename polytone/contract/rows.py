"""Dataset rows, one JSON object a line: conversations in OpenAI's messages format, verdicts and preferences.

Verdicts and preferences have TRL's column names in its conversational form. Keys beyond those named are kept.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import InputError

MAX_PROBLEMS_SHOWN = 20
HI = '[{"role": "user", "content": "Hi"}]'
HELLO = '[{"role": "assistant", "content": "Hello."}]'


class Message(BaseModel):
    """One turn. Keys beyond role and content (names, tool calls) are kept as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: str

    @field_validator("content")
    @classmethod
    def _not_blank(cls, content: str) -> str:
        if not content.strip():
            raise ValueError("is empty; write the text of the turn or remove the row")
        return content


class Conversation(BaseModel):
    """A conversation to learn from: it ends with the assistant, and someone speaks before the assistant does."""

    model_config = ConfigDict(extra="allow", frozen=True)

    messages: list[Message] = Field(min_length=2)

    @model_validator(mode="after")
    def _order(self) -> "Conversation":
        check_turns(self.messages)
        return self

    def as_dicts(self) -> list[dict[str, str]]:
        """The messages as the chat template and the API take them."""
        return [message.model_dump() for message in self.messages]


class Verdict(BaseModel):
    """A reply that someone found good (`label` true) or bad, with what was said before it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    prompt: list[Message] = Field(min_length=1)
    completion: list[Message] = Field(min_length=1, max_length=1)
    label: bool = Field(strict=True)

    @model_validator(mode="after")
    def _order(self) -> "Verdict":
        check_turns([*self.prompt, *self.completion])
        return self

    def conversation(self) -> Conversation:
        return Conversation(messages=[*self.prompt, *self.completion])


class Preference(BaseModel):
    """Two replies to the same prompt, of which one was preferred."""

    model_config = ConfigDict(extra="allow", frozen=True)

    prompt: list[Message] = Field(min_length=1)
    chosen: list[Message] = Field(min_length=1, max_length=1)
    rejected: list[Message] = Field(min_length=1, max_length=1)

    @model_validator(mode="after")
    def _order(self) -> "Preference":
        for reply in (self.chosen, self.rejected):
            check_turns([*self.prompt, *reply])
        return self


def check_turns(messages: Sequence[Message]) -> None:
    """Raise ValueError unless the turns are a conversation that the assistant ends."""
    roles = [message.role for message in messages]
    if "system" in roles[1:]:
        raise ValueError("a system turn may only come first")
    if roles[-1] != "assistant":
        raise ValueError(f"the last turn must be the assistant's, not the {roles[-1]}'s")
    spoken = [role for role in roles if role != "system"]
    if spoken[0] != "user":
        raise ValueError("the first turn after the system prompt must be the user's")
    if any(a == b for a, b in pairwise(spoken) if a in ("user", "assistant")):
        raise ValueError("two turns in a row have the same role")


T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class RowFile(Generic[T]):
    """The rows of one file with the file's identity; `lines` are the numbers of the lines they stand on."""

    path: str
    sha256: str
    rows: list[T]
    lines: list[int]


def read_conversations(path: Path) -> RowFile[Conversation]:
    """Read a JSON-lines file of `{"messages": [...]}` rows; errors as `read_rows`."""
    like = f'{{"messages": [{HI[1:-1]}, {HELLO[1:-1]}]}}'
    return read_rows(path, Conversation, "conversations", like)


def read_verdicts(path: Path) -> RowFile[Verdict]:
    """Read a JSON-lines file of `{"prompt": [...], "completion": [...], "label": bool}` rows; errors as `read_rows`."""
    return read_rows(path, Verdict, "verdicts", f'{{"prompt": {HI}, "completion": {HELLO}, "label": true}}')


def read_preferences(path: Path) -> RowFile[Preference]:
    """Read a JSON-lines file of `{"prompt", "chosen", "rejected"}` rows; errors as `read_rows`."""
    return read_rows(path, Preference, "preferences", f'{{"prompt": {HI}, "chosen": {HELLO}, "rejected": {HELLO}}}')


def read_rows(path: Path, kind: type[T], what: str, like: str) -> RowFile[T]:
    """Read a JSON-lines file of rows of one kind.

    Args:
        what: what the rows are called, in the plural.
        like: a good row, for the message.

    Raises:
        InputError: `file_not_found`, `file_not_text`, `file_empty` or `rows_malformed`; the last names every
            bad row (the first 20 of them) as `file:line: field: problem`.
    """
    raw, text = read_text(path, what)
    rows: list[T] = []
    lines: list[int] = []
    problems: list[str] = []
    # Not splitlines(): U+2028 and its like may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(kind.model_validate_json(line))
            lines.append(number)
        except ValidationError as error:
            problems.extend(f"{path}:{number}: {describe(problem)}" for problem in error.errors())
    if problems:
        more = len(problems) - MAX_PROBLEMS_SHOWN
        shown = "\n".join(problems[:MAX_PROBLEMS_SHOWN]) + (f"\n... and {more} more" if more > 0 else "")
        raise InputError(
            f"{shown}\nEach line must be like {like}. Mend or remove these rows; nothing was written.",
            code="rows_malformed",
        )
    if not rows:
        raise InputError(f"{path}: has no rows. Add at least one of the {what}.", code="file_empty")
    return RowFile(path=str(path), sha256=hashlib.sha256(raw).hexdigest(), rows=rows, lines=lines)


def read_text(path: Path, what: str) -> tuple[bytes, str]:
    try:
        raw = path.read_bytes()
        return raw, raw.decode()
    except FileNotFoundError:
        raise InputError(
            f"{path}: there is no such file. Name a JSON-lines file of {what}.", code="file_not_found"
        ) from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder. Name a JSON-lines file of {what}.", code="file_not_found") from None
    except UnicodeDecodeError as error:
        bad_line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{bad_line}: is not UTF-8 text. Save it as UTF-8.", code="file_not_text") from None


def describe(problem: object) -> str:
    """One pydantic error as `field: problem`."""
    record = json.loads(json.dumps(problem, default=str))
    field = ".".join(str(part) for part in record["loc"]) or "row"
    return f"{field}: {str(record['msg']).removeprefix('Value error, ')}"
