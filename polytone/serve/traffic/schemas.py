"""What can be said of an answer, as POST /v1/feedback takes it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from polytone.contract.models import FrozenModel

CHOICES = ("a", "b", "tie", "both_bad")
TEXTS = ("comment", "correction")

ShortId = Annotated[str, Field(min_length=1, max_length=128)]


class Annotator(FrozenModel):
    """Who says it; without one, the API key does."""

    id: Annotated[str, Field(min_length=1, max_length=100)]
    kind: Literal["human", "code", "llm"] = "human"


class Pair(FrozenModel):
    """Two answers to the same prompt, as they were shown: `shown` names the one on the left."""

    a: ShortId
    b: ShortId
    shown: Literal["a", "b"] = "a"
    blind: bool = False


class FeedbackBody(FrozenModel):
    """One statement about a completion, a conversation or a pair of completions.

    `thumb` takes up or down, `rating` 1 to 5, `tag` a short word, `comment` and `correction` a text, `preference` a, b,
    tie or both_bad. `supersedes` names an earlier feedback that this one takes the place of; with the key `retract`
    nothing takes its place.
    """

    key: Literal["thumb", "rating", "tag", "comment", "correction", "preference", "retract"]
    completion_id: ShortId | None = None
    conversation_id: ShortId | None = None
    pair: Pair | None = None
    value: Annotated[str, Field(max_length=64)] | int | None = None
    text: str | None = None
    annotator: Annotator | None = None
    idempotency_key: Annotated[str, Field(min_length=1, max_length=120)] | None = None
    supersedes: Annotated[str, Field(max_length=32)] | None = None

    @model_validator(mode="after")
    def _sense(self) -> "FeedbackBody":
        named = [field for field in ("completion_id", "conversation_id", "pair") if getattr(self, field) is not None]
        if self.key == "retract":
            if self.supersedes is None or named:
                raise ValueError("retract names the feedback in supersedes, and nothing else")
            return self
        if len(named) != 1:
            raise ValueError("name one of completion_id, conversation_id and pair")
        if (self.key == "preference") != (named == ["pair"]):
            raise ValueError("preference goes with pair, and only with it")
        if self.key == "correction" and named != ["completion_id"]:
            raise ValueError("correction goes with completion_id")
        if problem := wrong_content(self):
            raise ValueError(problem)
        return self


def wrong_content(body: FeedbackBody) -> str | None:
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
