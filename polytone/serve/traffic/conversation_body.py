"""What can be kept of a conversation, as POST /v1/conversations and its turns take it."""

import json
import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from polytone.contract.models import FrozenModel
from polytone.serve.database.session import is_storable

LONGEST_DETAILS = 64_000
DEEPEST_DETAILS = 20


def storable(text: str) -> str:
    """Refuses what no database takes as text."""
    if not is_storable(text):
        raise ValueError("NUL and lone surrogates cannot be kept")
    return text


def storable_details(details: dict[str, Any]) -> dict[str, Any]:
    """Refuses what is too large, too deep or no JSON: Python reads NaN and 1e999, and a database refuses them."""
    check_value(details)
    size = len(json.dumps(details, ensure_ascii=False).encode())
    if size > LONGEST_DETAILS:
        raise ValueError(f"{size} bytes of JSON are more than {LONGEST_DETAILS}")
    return details


def check_value(value: Any, depth: int = 0) -> None:
    if depth > DEEPEST_DETAILS:
        raise ValueError(f"more than {DEEPEST_DETAILS} levels in each other")
    if isinstance(value, str):
        storable(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("NaN and infinity are no JSON")
    elif isinstance(value, dict):
        for key, one in value.items():
            storable(key)
            check_value(one, depth + 1)
    elif isinstance(value, list):
        for one in value:
            check_value(one, depth + 1)


Words = Annotated[str, AfterValidator(storable)]
ShortId = Annotated[Words, Field(min_length=1, max_length=64)]


class ConversationBody(FrozenModel):
    """Without a title it gets one from what is asked first."""

    title: Annotated[Words, Field(max_length=200)] = ""


class TurnBody(FrozenModel):
    """One turn after `parent`, or the first. With an `id` of the sender's it is kept once, however often it is sent."""

    id: Annotated[str, Field(pattern=r"^turn_[0-9a-f]{1,59}$")] | None = None
    parent: ShortId | None = None
    role: Literal["system", "user", "assistant"]
    content: Words
    completion_id: ShortId | None = None
    details: Annotated[dict[str, Any], AfterValidator(storable_details)] = Field(default_factory=dict)
