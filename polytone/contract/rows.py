"""Dataset rows: conversations in OpenAI's messages format, verdicts and preferences.

Verdicts and preferences have TRL's column names in its conversational form. Other keys are kept.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from pydantic import Field, field_validator, model_validator

from .models import FrozenModel


class Message(FrozenModel, extra="allow"):
    """One turn. Other keys than role and content, such as names and tool calls, are kept."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str

    @field_validator("content")
    @classmethod
    def _not_blank(cls, content: str) -> str:
        if not content.strip():
            raise ValueError("is empty; write the text of the turn or remove the row")
        return content


class Conversation(FrozenModel, extra="allow"):
    """A conversation to learn from. A user speaks first, after an optional system prompt, and the assistant last."""

    messages: list[Message] = Field(min_length=2)

    @model_validator(mode="after")
    def _order(self) -> "Conversation":
        check_turns(self.messages)
        return self

    def as_dicts(self) -> list[dict[str, str]]:
        """The messages in the form that chat templates and the API take."""
        return [message.model_dump() for message in self.messages]


class Verdict(FrozenModel, extra="allow"):
    """A reply that was judged good (`label` true) or bad, with the conversation before it."""

    prompt: list[Message] = Field(min_length=1)
    completion: list[Message] = Field(min_length=1, max_length=1)
    label: bool = Field(strict=True)

    @model_validator(mode="after")
    def _order(self) -> "Verdict":
        check_turns([*self.prompt, *self.completion])
        return self

    def conversation(self) -> Conversation:
        return Conversation(messages=[*self.prompt, *self.completion])


class Preference(FrozenModel, extra="allow"):
    """Two replies to the same prompt, one of them preferred."""

    prompt: list[Message] = Field(min_length=1)
    chosen: list[Message] = Field(min_length=1, max_length=1)
    rejected: list[Message] = Field(min_length=1, max_length=1)

    @model_validator(mode="after")
    def _order(self) -> "Preference":
        for reply in (self.chosen, self.rejected):
            check_turns([*self.prompt, *reply])
        return self


def check_turns(messages: Sequence[Message]) -> None:
    """Raise ValueError unless the turns form a conversation that ends with the assistant."""
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
