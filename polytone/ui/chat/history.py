"""The list beside the chat: conversations are searched, opened, also by link, exported and forgotten."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..api import ApiError
from ..shell import EVENT, LATEST, QUIET, Shell, told, warn
from ..thread import Thread, list_label, thread_of
from .view import ChatView, nothing_new, shown

NONE_YET = "None yet. What you say is kept here."
NONE_LIKE_IT = "Nothing was said in these words."
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
            empty = gr.Markdown(NONE_YET, elem_classes="hint")
            with gr.Row():
                export = gr.Button("Export", size="sm", min_width=80)
                forget = gr.Button("Delete", size="sm", min_width=80)
            with gr.Row(visible=False) as sure:
                really = gr.Button("Delete for good", size="sm", variant="stop", min_width=80)
                rather_not = gr.Button("Keep", size="sm", min_width=80)
        file_text, file_name, open_id = (gr.Textbox("", visible="hidden", container=False) for _ in range(3))
        return cls(search, chosen, empty, export, forget, sure, really, rather_not, file_text, file_name, open_id)

    @property
    def listing(self) -> list[Any]:
        """What `HistoryEvents.listed` gives values for."""
        return [self.chosen, self.empty, self.open_id]

    def wire(self, shell: Shell, page: gr.Blocks, tab: gr.Tab, view: ChatView, asked: list[Any]) -> None:
        """`asked` are the events that answer: they end when another conversation is opened."""
        does = HistoryEvents(shell)
        now = [view.thread, shell.key]
        moments = [page.load, tab.select, self.search.change, shell.key.submit, view.settled.change]
        gr.on(moments, does.listed, [self.search, *now], self.listing, show_progress="hidden", **LATEST)
        self.open_id.change(None, self.open_id, None, js=ADDRESS, **EVENT)
        self.chosen.input(does.opened, [self.chosen, *now], view.outputs, cancels=asked, **QUIET)
        page.load(does.linked, now, view.outputs, **QUIET)
        made = self.export.click(does.exported, [self.search, *now], [self.file_text, self.file_name], **QUIET)
        made.then(None, [self.file_text, self.file_name], None, js=SAVE, **EVENT)
        self.forget.click(lambda thread: gr.update(visible=thread.id is not None), view.thread, self.sure, **QUIET)
        self.rather_not.click(lambda: gr.update(visible=False), None, self.sure, **QUIET)
        self.really.click(does.forgotten, now, [self.sure, *view.outputs], cancels=asked, **QUIET)


@dataclass(frozen=True)
class HistoryEvents:
    """What the list does when something is clicked."""

    shell: Shell

    async def listed(self, words: str, thread: Thread, key: str) -> Any:
        here = thread.id or ""
        try:
            found = await self.shell.api(key).get("/v1/conversations", search=words.strip() or None, limit=SHOWN)
        except ApiError as error:
            return gr.update(choices=[], value=None), gr.update(value=told(error), visible=True), here
        choices = [(list_label(kept), kept["id"]) for kept in found["conversations"]]
        chosen = thread.id if thread.id in {identifier for _, identifier in choices} else None
        nothing = NONE_LIKE_IT if words.strip() else NONE_YET
        return gr.update(choices=choices, value=chosen), gr.update(value=nothing, visible=not choices), here

    async def opened(self, identifier: str | None, thread: Thread, key: str) -> Any:
        if not identifier or identifier == thread.id:
            return nothing_new(thread)
        try:
            kept = await self.shell.api(key).get(f"/v1/conversations/{identifier}")
        except ApiError as error:
            warn(error)
            return nothing_new(thread)
        return shown(thread_of(kept), self.shell.server.url)

    async def linked(self, thread: Thread, key: str, request: gr.Request) -> Any:
        return await self.opened(request.query_params.get("conversation"), thread, key)

    async def exported(self, words: str, thread: Thread, key: str) -> tuple[str, str]:
        """The open conversation, else everything the search finds."""
        wanted = {"conversation_id": thread.id} if thread.id else {"search": words.strip() or None}
        try:
            text = await self.shell.api(key).text("/v1/conversations/export", **wanted)
        except ApiError as error:
            warn(error)
            return "", ""
        if not text:
            gr.Info("There is nothing to export yet.")
        return text, f"{thread.id or 'conversations'}.jsonl"

    async def forgotten(self, thread: Thread, key: str) -> Any:
        closed = gr.update(visible=False)
        try:
            if thread.id:
                await self.shell.api(key).delete(f"/v1/conversations/{thread.id}")
        except ApiError as error:
            warn(error)
            return closed, *nothing_new(thread)
        return closed, *shown(Thread(), self.shell.server.url)
