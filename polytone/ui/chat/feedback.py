"""Feedback on an answer, as the server takes it."""

from typing import Any
from uuid import uuid4

from ..api import Api
from ..shell import annotator


async def give_thumb(
    api: Api, completion: str, value: str | None, given: dict[str, str], tester: str
) -> dict[str, str]:
    """A thumb takes the place of the one given before; None takes it back. Returns the ids of thumbs that stand."""
    before = given.get(completion)
    standing = {key: identifier for key, identifier in given.items() if key != completion}
    if value is None:
        if before:
            await api.post("/v1/feedback", {"key": "retract", "supersedes": before, "annotator": annotator(tester)})
        return standing
    said = {"key": "thumb", "value": value, **({"supersedes": before} if before else {})}
    return {**standing, completion: await give(api, completion, said, tester)}


async def give(api: Api, completion: str, said: dict[str, Any], tester: str) -> str:
    """Say something of a completion; the id of the feedback."""
    body = {**said, "completion_id": completion, "annotator": annotator(tester), "idempotency_key": uuid4().hex}
    return str((await api.post("/v1/feedback", body))["id"])
