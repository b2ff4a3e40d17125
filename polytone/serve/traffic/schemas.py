"""Request bodies of feedback and conversations, and what they are refused for."""

import json
import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from polytone.contract.models import FrozenModel
from polytone.serve.database.session import is_storable

CHOICES = ("a", "b", "tie", "both_bad")
TEXTS = ("comment", "correction")
MAX_DETAILS_BYTES = 64_000
MAX_DETAILS_DEPTH = 20


def storable(text: str) -> str:
    """Refuse text that no database accepts."""
    if not is_storable(text):
        raise ValueError("NUL and lone surrogates cannot be stored")
    return text


def storable_details(details: dict[str, Any]) -> dict[str, Any]:
    """Refuse details that are too large, too deep or not JSON: Python reads NaN and 1e999, and databases do not."""
    check_value(details)
    size = len(json.dumps(details, ensure_ascii=False).encode())
    if size > MAX_DETAILS_BYTES:
        raise ValueError(f"{size} bytes of JSON are more than {MAX_DETAILS_BYTES}")
    return details


def check_value(value: Any, depth: int = 0) -> None:
    if depth > MAX_DETAILS_DEPTH:
        raise ValueError(f"nested more than {MAX_DETAILS_DEPTH} levels deep")
    if isinstance(value, str):
        storable(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("NaN and infinity are not JSON")
    elif isinstance(value, dict):
        for key, one in value.items():
            storable(key)
            check_value(one, depth + 1)
    elif isinstance(value, list):
        for one in value:
            check_value(one, depth + 1)


TargetId = Annotated[str, Field(min_length=1, max_length=128)]
StorableText = Annotated[str, AfterValidator(storable)]
StorableId = Annotated[StorableText, Field(min_length=1, max_length=64)]


class Annotator(FrozenModel):
    """The person, program or model that gave feedback; by default the API key."""

    id: Annotated[str, Field(min_length=1, max_length=100)]
    kind: Literal["human", "code", "llm"] = "human"


class Pair(FrozenModel):
    """Two answers to the same prompt, as they were shown: `shown` names the one on the left."""

    a: TargetId
    b: TargetId
    shown: Literal["a", "b"] = "a"
    blind: bool = False


class FeedbackBody(FrozenModel):
    """One statement about a completion, a conversation or a pair of completions.

    `thumb` takes up or down, `rating` 1 to 5, `tag` a short word, `comment` and `correction` a text, `preference` a, b,
    tie or both_bad. `supersedes` names an earlier feedback that this one replaces; with the key `retract` that one is
    withdrawn.
    """

    key: Literal["thumb", "rating", "tag", "comment", "correction", "preference", "retract"]
    completion_id: TargetId | None = None
    conversation_id: TargetId | None = None
    pair: Pair | None = None
    value: Annotated[str, Field(max_length=64)] | int | None = None
    text: str | None = None
    annotator: Annotator | None = None
    idempotency_key: Annotated[str, Field(min_length=1, max_length=120)] | None = None
    supersedes: Annotated[str, Field(max_length=32)] | None = None

    @model_validator(mode="after")
    def _check(self) -> "FeedbackBody":
        targets = [field for field in ("completion_id", "conversation_id", "pair") if getattr(self, field) is not None]
        if self.key == "retract":
            if self.supersedes is None or targets:
                raise ValueError("retract names the feedback in supersedes, and nothing else")
            return self
        if len(targets) != 1:
            raise ValueError("name one of completion_id, conversation_id and pair")
        if (self.key == "preference") != (targets == ["pair"]):
            raise ValueError("preference needs pair, and only preference takes it")
        if self.key == "correction" and targets != ["completion_id"]:
            raise ValueError("correction needs completion_id")
        if problem := content_problem(self):
            raise ValueError(problem)
        return self


def content_problem(body: FeedbackBody) -> str | None:
    value = body.value
    if body.key == "thumb" and value not in ("up", "down"):
        return "thumb takes the value up or down"
    if body.key == "rating" and (isinstance(value, str) or value is None or not 1 <= value <= 5):
        return "rating takes a value from 1 to 5"
    if body.key == "preference" and value not in CHOICES:
        return f"preference takes one of {', '.join(CHOICES)}"
    if body.key == "tag" and not (isinstance(value, str) and value.strip()):
        return "tag takes a short word as its value"
    if body.key in TEXTS and not (body.text or "").strip():
        return f"{body.key} takes a text"
    return None


class TextBody(FrozenModel):
    """A text to look for in recorded answers. It is sent in a body, since addresses end up in access logs."""

    text: Annotated[StorableText, Field(min_length=1)]


class ConversationBody(FrozenModel):
    """A new conversation. Without a title, its first question becomes the title."""

    title: Annotated[StorableText, Field(max_length=200)] = ""


class TurnBody(FrozenModel):
    """One turn after `parent`, or a first one. With an `id` of the sender's it is stored once, even if sent again."""

    id: Annotated[str, Field(pattern=r"^turn_[0-9a-f]{1,59}$")] | None = None
    parent: StorableId | None = None
    role: Literal["system", "user", "assistant"]
    content: StorableText
    completion_id: StorableId | None = None
    details: Annotated[dict[str, Any], AfterValidator(storable_details)] = Field(default_factory=dict)
