"""Saving conversations on the server, turn by turn. A failure does not end the conversation."""

from dataclasses import replace

import gradio as gr

from ..api import Api, ApiError
from ..shell import error_text
from ..thread import Thread, Turn


async def new_conversation(api: Api, thread: Thread) -> Thread:
    """The thread with an id of the server, or without one, unsaved, if the server refuses."""
    if thread.id is not None:
        return thread
    try:
        return replace(thread, id=(await api.post("/v1/conversations"))["id"])
    except ApiError as error:
        gr.Warning(f"This conversation is not saved: {error_text(error)}")
        return thread


async def save_turn(api: Api, thread: Thread, turn: Turn) -> None:
    """Save a turn; sent twice, it is saved once."""
    if thread.id is None:
        return
    try:
        await api.post(f"/v1/conversations/{thread.id}/turns", turn.as_json())
    except ApiError as error:
        gr.Warning(f"The last turn is not saved: {error_text(error)}")
