"""/v1/conversations: what testers keep of their conversations, for the page and for tools."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from polytone.serve.auth.keys import Key
from polytone.serve.services import Services
from polytone.serve.traffic.conversation_body import ConversationBody, ShortId, TurnBody, Words
from polytone.serve.traffic.conversations import CURSOR, Conversations, turn_json

from .auth import inference_caller
from .json_lines import JSON_LINES, JSON_LINES_RESPONSE

UNOWNED = ""
Search = Annotated[Words | None, Query(max_length=200)]


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
        found, after = await asyncio.to_thread(store.page, who, search, cursor, limit)
        return {"conversations": [kept.as_json() for kept in found], "next": after}

    @router.get("/export", response_model=None, responses=JSON_LINES_RESPONSE)
    async def export(
        who: owner, conversation_id: Annotated[ShortId | None, Query()] = None, search: Search = None
    ) -> StreamingResponse:
        """JSON lines to train on: one for every branch of one conversation, or of all that the search finds."""
        return StreamingResponse(
            await asyncio.to_thread(store.export, who, conversation_id, search), media_type=JSON_LINES
        )

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
