"""Dataset rows: conversations in OpenAI's messages format, one JSON object a line."""

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import InputError

MAX_PROBLEMS_SHOWN = 20


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
        roles = [message.role for message in self.messages]
        if "system" in roles[1:]:
            raise ValueError("a system turn may only come first")
        if roles[-1] != "assistant":
            raise ValueError(f"the last turn must be the assistant's, not the {roles[-1]}'s")
        spoken = [role for role in roles if role != "system"]
        if spoken[0] != "user":
            raise ValueError("the first turn after the system prompt must be the user's")
        if any(a == b for a, b in pairwise(spoken) if a in ("user", "assistant")):
            raise ValueError("two turns in a row have the same role")
        return self

    def as_dicts(self) -> list[dict[str, str]]:
        """The messages as the chat template and the API take them."""
        return [message.model_dump() for message in self.messages]


class ConversationFile(BaseModel):
    """The rows of one file with the file's identity."""

    model_config = ConfigDict(frozen=True)

    path: str
    sha256: str
    rows: list[Conversation]


def read_conversations(path: Path) -> ConversationFile:
    """Read a JSON-lines file of `{"messages": [...]}` rows.

    Raises:
        InputError: `file_not_found`, `file_not_text`, `file_empty` or `rows_malformed`; the last names every
            bad row (the first 20 of them) as `file:line: field: problem`.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode()
    except FileNotFoundError:
        raise InputError(
            f"{path}: there is no such file. Name a JSON-lines file of conversations.", code="file_not_found"
        ) from None
    except IsADirectoryError:
        raise InputError(
            f"{path}: is a folder. Name a JSON-lines file of conversations.", code="file_not_found"
        ) from None
    except UnicodeDecodeError as error:
        bad_line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{bad_line}: is not UTF-8 text. Save it as UTF-8.", code="file_not_text") from None
    rows: list[Conversation] = []
    problems: list[str] = []
    # Not splitlines(): U+2028 and its like may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(Conversation.model_validate_json(line))
        except ValidationError as error:
            problems.extend(f"{path}:{number}: {describe(problem)}" for problem in error.errors())
    if problems:
        more = len(problems) - MAX_PROBLEMS_SHOWN
        shown = "\n".join(problems[:MAX_PROBLEMS_SHOWN]) + (f"\n... and {more} more" if more > 0 else "")
        raise InputError(
            f'{shown}\nEach line must be like {{"messages": [{{"role": "user", "content": "Hi"}}, '
            '{"role": "assistant", "content": "Hello."}]}. Mend or remove these rows; nothing was written.',
            code="rows_malformed",
        )
    if not rows:
        raise InputError(f"{path}: has no rows. Add at least one conversation.", code="file_empty")
    return ConversationFile(path=str(path), sha256=hashlib.sha256(raw).hexdigest(), rows=rows)


def describe(problem: object) -> str:
    """One pydantic error as `field: problem`."""
    record = json.loads(json.dumps(problem, default=str))
    field = ".".join(str(part) for part in record["loc"]) or "row"
    return f"{field}: {str(record['msg']).removeprefix('Value error, ')}"
