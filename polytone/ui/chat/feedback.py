"""Feedback on an answer, as the server takes it."""

from typing import Any
from uuid import uuid4

from ..api import Api
from ..shell import annotator


async def give_thumb(
    api: Api, completion: str, value: str | None, thumbs: dict[str, str], tester: str
) -> dict[str, str]:
    """Give a thumb, which replaces an earlier one; None retracts that. Returns the current thumbs by completion."""
    earlier = thumbs.get(completion)
    others = {key: identifier for key, identifier in thumbs.items() if key != completion}
    if value is None:
        if earlier:
            await api.post("/v1/feedback", {"key": "retract", "supersedes": earlier, "annotator": annotator(tester)})
        return others
    feedback = {"key": "thumb", "value": value, **({"supersedes": earlier} if earlier else {})}
    return {**others, completion: await give(api, completion, feedback, tester)}


async def give(api: Api, completion: str, feedback: dict[str, Any], tester: str) -> str:
    """Give feedback on a completion; returns its id."""
    body = {**feedback, "completion_id": completion, "annotator": annotator(tester), "idempotency_key": uuid4().hex}
    return str((await api.post("/v1/feedback", body))["id"])
