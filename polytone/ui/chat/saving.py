"""A conversation is kept on the server, turn by turn; where that fails it goes on."""

from dataclasses import replace

import gradio as gr

from polytone.ui.api import Api, ApiError
from polytone.ui.shell import told
from polytone.ui.thread import Thread, Turn


async def new_conversation(api: Api, thread: Thread) -> Thread:
    """The thread under an id of the server; without one it goes on, and is not kept."""
    if thread.id is not None:
        return thread
    try:
        return replace(thread, id=(await api.post("/v1/conversations"))["id"])
    except ApiError as error:
        gr.Warning(f"This conversation is not kept: {told(error)}")
        return thread


async def keep_turn(api: Api, thread: Thread, turn: Turn) -> None:
    """Keep a turn; sent twice it is kept once."""
    if thread.id is None:
        return
    try:
        await api.post(f"/v1/conversations/{thread.id}/turns", turn.as_json())
    except ApiError as error:
        gr.Warning(f"The last turn is not kept: {told(error)}")
