"""/v1/conversations: conversations that testers keep, for the pages and for tools."""

import asyncio
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse

from polytone.serve.auth.keys import Key
from polytone.serve.database.session import in_utc
from polytone.serve.services import Services
from polytone.serve.traffic.conversations import CURSOR, Conversations, turn_json
from polytone.serve.traffic.schemas import ConversationBody, StorableId, StorableText, TurnBody

from .auth import inference_caller
from .json_lines import JSON_LINES, JSON_LINES_RESPONSE

UNOWNED = ""
Search = Annotated[StorableText | None, Query(max_length=200)]


def conversation_routes(services: Services) -> APIRouter:
    def owned_by(key: Annotated[Key | None, Depends(inference_caller(services))]) -> str:
        """Whose conversations these are; without keys, those of anyone on this machine."""
        return key.name if key else UNOWNED

    router = APIRouter(prefix="/v1/conversations", tags=["conversations"])
    owner = Annotated[str, Depends(owned_by)]
    store = Conversations(services.database)

    @router.post("", status_code=201)
    async def create(who: owner, body: ConversationBody | None = None) -> dict[str, Any]:
        """Begin one; its id is also what to send as `x-conversation-id`."""
        return (await asyncio.to_thread(store.create, who, body.title if body else "")).as_json()

    @router.get("")
    async def list_conversations(
        who: owner,
        search: Search = None,
        cursor: Annotated[str | None, Query(pattern=CURSOR)] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> dict[str, Any]:
        """Those the key made, the newest first; `search` is for words of the title or of what was said."""
        conversations, after = await asyncio.to_thread(store.page, who, search, cursor, limit)
        return {"conversations": [conversation.as_json() for conversation in conversations], "next": after}

    @router.get("/export", response_model=None, responses=JSON_LINES_RESPONSE)
    async def export(
        who: owner,
        conversation_id: Annotated[StorableId | None, Query()] = None,
        search: Search = None,
        until: datetime | None = None,
        part: Literal["rows", "manifest"] = "rows",
    ) -> Response:
        """Rows to train on as JSON lines, one for every branch of one conversation or of all that the search finds; or
        their manifest. With the same `until` both are of the same rows."""
        moment = in_utc(until) if until else None
        exported = await asyncio.to_thread(store.export, who, conversation_id, search, moment)
        headers = {"x-polytone-export-until": exported.until.isoformat()}
        if part == "manifest":
            manifest = await asyncio.to_thread(exported.manifest)
            return JSONResponse(manifest.model_dump(mode="json", by_alias=True), headers=headers)
        return StreamingResponse(exported.lines(), media_type=JSON_LINES, headers=headers)

    @router.get("/{conversation_id}")
    async def get(conversation_id: str, who: owner) -> dict[str, Any]:
        """One of them with its turns, in the order they were said."""
        return (await asyncio.to_thread(store.get, who, conversation_id)).as_json()

    @router.post("/{conversation_id}/turns", status_code=201)
    async def add(conversation_id: str, body: TurnBody, who: owner) -> dict[str, Any]:
        """Say something after `parent`; a second turn after the same one is its sibling."""
        return turn_json(await asyncio.to_thread(store.add, who, conversation_id, body))

    @router.delete("/{conversation_id}")
    async def delete(conversation_id: str, who: owner) -> dict[str, Any]:
        """Delete one with its turns; the answers in it are traffic, and stay."""
        return {"deleted": await asyncio.to_thread(store.delete, who, conversation_id)}

    return router
