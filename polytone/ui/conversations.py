"""Conversations kept on the server: listed, searched, opened by link, exported and forgotten."""

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from .api import Api, ApiError
from .chat_view import ChatView, shown
from .shell import Shell, told, warn
from .thread import Thread, Turn, list_label, thread_of

SHOWN = 50
# Keeps no file on the server: the browser makes one of the text.
SAVE = """(text, name) => {
    if (!text) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "application/x-ndjson"}));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
}"""
ADDRESS = """(id) => {
    const url = new URL(window.location.href);
    if (id) url.searchParams.set("conversation", id); else url.searchParams.delete("conversation");
    window.history.replaceState(null, "", url);
}"""


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


@dataclass(frozen=True)
class History:
    """The list beside the chat."""

    search: gr.Textbox
    chosen: gr.Radio
    empty: gr.Markdown
    export: gr.Button
    forget: gr.Button
    sure: gr.Row
    really: gr.Button
    rather_not: gr.Button
    file_text: gr.Textbox
    file_name: gr.Textbox
    open_id: gr.Textbox

    @classmethod
    def build(cls) -> "History":
        with gr.Accordion("Conversations", open=True):
            search = gr.Textbox("", label="Search", placeholder="words that were said", elem_id="history-search")
            chosen = gr.Radio(label="Open a conversation", choices=[], elem_id="history-list")
            empty = gr.Markdown("None yet. What you say is kept here.", elem_classes="hint")
            with gr.Row():
                export = gr.Button("Export", size="sm", min_width=80)
                forget = gr.Button("Delete", size="sm", min_width=80)
            with gr.Row(visible=False) as sure:
                really = gr.Button("Delete for good", size="sm", variant="stop", min_width=80)
                rather_not = gr.Button("Keep", size="sm", min_width=80)
        file_text, file_name, open_id = (gr.Textbox("", visible="hidden", container=False) for _ in range(3))
        return cls(search, chosen, empty, export, forget, sure, really, rather_not, file_text, file_name, open_id)

    def wire(self, shell: Shell, page: gr.Blocks, tab: gr.Tab, view: ChatView, asked: list[Any]) -> None:
        """`asked` are the events that answer: they end when another conversation is opened."""
        url, thread, outputs = shell.server.url, view.thread, view.outputs
        unchanged = [gr.skip() for _ in outputs]

        async def listed(words: str, thread: Thread, key: str) -> Any:
            try:
                found = await shell.api(key).get("/v1/conversations", search=words.strip() or None, limit=SHOWN)
            except ApiError as error:
                return gr.update(choices=[], value=None), gr.update(value=told(error), visible=True), thread.id or ""
            choices = [(list_label(kept), kept["id"]) for kept in found["conversations"]]
            known = {identifier for _, identifier in choices}
            nothing = "Nothing was said in these words." if words.strip() else "None yet. What you say is kept here."
            return (
                gr.update(choices=choices, value=thread.id if thread.id in known else None),
                gr.update(value=nothing, visible=not choices),
                thread.id or "",
            )

        async def opened(identifier: str | None, thread: Thread, key: str) -> Any:
            if not identifier or identifier == thread.id:
                return unchanged
            try:
                return shown(thread_of(await shell.api(key).get(f"/v1/conversations/{identifier}")), url)
            except ApiError as error:
                warn(error)
                return unchanged

        async def linked(thread: Thread, key: str, request: gr.Request) -> Any:
            return await opened(request.query_params.get("conversation"), thread, key)

        async def exported(words: str, thread: Thread, key: str) -> tuple[str, str]:
            """The open conversation, else everything the search finds."""
            wanted = {"conversation_id": thread.id} if thread.id else {"search": words.strip() or None}
            try:
                text = await shell.api(key).text("/v1/conversations/export", **wanted)
            except ApiError as error:
                warn(error)
                return "", ""
            if not text:
                gr.Info("There is nothing to export yet.")
            return text, f"{thread.id or 'conversations'}.jsonl"

        async def forgotten(thread: Thread, key: str) -> Any:
            try:
                if thread.id:
                    await shell.api(key).delete(f"/v1/conversations/{thread.id}")
            except ApiError as error:
                warn(error)
                return [gr.update(visible=False), *unchanged]
            return [gr.update(visible=False), *shown(Thread(), url)]

        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        refresh = ([self.search, thread, shell.key], [self.chosen, self.empty, self.open_id])
        for moment in (page.load, tab.select, self.search.change, shell.key.submit, view.settled.change):
            moment(listed, *refresh, **quiet)
        self.open_id.change(None, self.open_id, None, js=ADDRESS, api_visibility="private")
        self.chosen.input(opened, [self.chosen, thread, shell.key], outputs, cancels=asked, **quiet)
        page.load(linked, [thread, shell.key], outputs, **quiet)
        self.export.click(exported, [self.search, thread, shell.key], [self.file_text, self.file_name], **quiet).then(
            None, [self.file_text, self.file_name], None, js=SAVE, api_visibility="private"
        )
        self.forget.click(lambda thread: gr.update(visible=thread.id is not None), thread, self.sure, **quiet)
        self.rather_not.click(lambda: gr.update(visible=False), None, self.sure, **quiet)
        self.really.click(forgotten, [thread, shell.key], [self.sure, *outputs], cancels=asked, **quiet)
