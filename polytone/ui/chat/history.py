"""The list beside the chat: search, open, link to, export and delete conversations."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..api import ApiError
from ..shell import EVENT, LATEST, QUIET, Shell, error_text, warn
from ..thread import Thread, list_label, thread_of
from .view import ChatView, nothing_new, shown

NONE_YET = "No conversations yet. They are saved here."
NO_MATCH = "No conversation matches your search."
SHOWN = 50
# No file is stored on the server: the browser makes one of the text.
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
    confirmation: gr.Row
    confirm: gr.Button
    cancel: gr.Button
    file_text: gr.Textbox
    file_name: gr.Textbox
    open_id: gr.Textbox

    @classmethod
    def build(cls) -> "History":
        with gr.Accordion("Conversations", open=True):
            search = gr.Textbox("", label="Search", placeholder="words in a conversation", elem_id="history-search")
            chosen = gr.Radio(label="Open a conversation", choices=[], elem_id="history-list")
            empty = gr.Markdown(NONE_YET, elem_classes="hint")
            with gr.Row():
                export = gr.Button("Export", size="sm", min_width=80)
                forget = gr.Button("Delete", size="sm", min_width=80)
            with gr.Row(visible=False) as confirmation:
                confirm = gr.Button("Delete permanently", size="sm", variant="stop", min_width=80)
                cancel = gr.Button("Cancel", size="sm", min_width=80)
        file_text, file_name, open_id = (gr.Textbox("", visible="hidden", container=False) for _ in range(3))
        return cls(search, chosen, empty, export, forget, confirmation, confirm, cancel, file_text, file_name, open_id)

    @property
    def listing(self) -> list[Any]:
        """The outputs of `HistoryEvents.listed`."""
        return [self.chosen, self.empty, self.open_id]

    def wire(self, shell: Shell, page: gr.Blocks, tab: gr.Tab, view: ChatView, asked: list[Any]) -> None:
        """Connect the components. `asked` are the events that answer; they end when another conversation is opened."""
        does = HistoryEvents(shell)
        now = [view.thread, shell.key]
        moments = [page.load, tab.select, self.search.change, shell.key.submit, view.settled.change]
        gr.on(moments, does.listed, [self.search, *now], self.listing, show_progress="hidden", **LATEST)
        self.open_id.change(None, self.open_id, None, js=ADDRESS, **EVENT)
        self.chosen.input(does.opened, [self.chosen, *now], view.outputs, cancels=asked, **QUIET)
        page.load(does.linked, now, view.outputs, **QUIET)
        made = self.export.click(does.exported, [self.search, *now], [self.file_text, self.file_name], **QUIET)
        made.then(None, [self.file_text, self.file_name], None, js=SAVE, **EVENT)
        self.forget.click(
            lambda thread: gr.update(visible=thread.id is not None), view.thread, self.confirmation, **QUIET
        )
        self.cancel.click(lambda: gr.update(visible=False), None, self.confirmation, **QUIET)
        self.confirm.click(does.forgotten, now, [self.confirmation, *view.outputs], cancels=asked, **QUIET)


@dataclass(frozen=True)
class HistoryEvents:
    """Handlers of the list."""

    shell: Shell

    async def listed(self, words: str, thread: Thread, key: str) -> Any:
        here = thread.id or ""
        try:
            listed = await self.shell.api(key).get("/v1/conversations", search=words.strip() or None, limit=SHOWN)
        except ApiError as error:
            return gr.update(choices=[], value=None), gr.update(value=error_text(error), visible=True), here
        choices = [(list_label(saved), saved["id"]) for saved in listed["conversations"]]
        chosen = thread.id if thread.id in {identifier for _, identifier in choices} else None
        nothing = NO_MATCH if words.strip() else NONE_YET
        return gr.update(choices=choices, value=chosen), gr.update(value=nothing, visible=not choices), here

    async def opened(self, identifier: str | None, thread: Thread, key: str) -> Any:
        if not identifier or identifier == thread.id:
            return nothing_new(thread)
        try:
            saved = await self.shell.api(key).get(f"/v1/conversations/{identifier}")
        except ApiError as error:
            warn(error)
            return nothing_new(thread)
        return shown(thread_of(saved), self.shell.server.url)

    async def linked(self, thread: Thread, key: str, request: gr.Request) -> Any:
        return await self.opened(request.query_params.get("conversation"), thread, key)

    async def exported(self, words: str, thread: Thread, key: str) -> tuple[str, str]:
        """The open conversation, else all that match the search."""
        params = {"conversation_id": thread.id} if thread.id else {"search": words.strip() or None}
        try:
            text = await self.shell.api(key).text("/v1/conversations/export", **params)
        except ApiError as error:
            warn(error)
            return "", ""
        if not text:
            gr.Info("Nothing to export yet.")
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
