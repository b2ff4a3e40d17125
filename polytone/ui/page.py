"""The chat page: pick a voice, chat with streaming and stop."""

import os
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
from fastapi import FastAPI
from openai import APIError, AsyncOpenAI

FONTS = ["system-ui", "sans-serif"]
MONO = ["ui-monospace", "monospace"]
TESTERS_AT_ONCE = 64
MAX_TOKENS = 400


def page_app(url: str, path: str) -> FastAPI:
    """The page under `path` of an app of its own; it talks to the API at `url`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(app, build_page(url), path=path, theme=theme(), footer_links=[])
    return app


def theme() -> gr.themes.Base:
    """Local fonts only: the page fetches nothing from outside."""
    return gr.themes.Soft(primary_hue="teal", font=FONTS, font_mono=MONO)


def build_page(url: str) -> gr.Blocks:
    def client(key: str | None) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{url}/v1", api_key=key or "none", max_retries=0)

    async def voices(key: str | None) -> list[tuple[str, str]]:
        """(label, model) of everything that answers now, the voices first."""
        async with client(key) as server:
            cards = [card async for card in server.models.list()]
        cards.sort(key=lambda card: getattr(card, "parent", None) is None)
        return [(label(card), card.id) for card in cards]

    async def refresh(chosen: str | None, key: str | None) -> Any:
        try:
            choices = await voices(key)
        except APIError as error:
            gr.Warning(f"The server cannot list its voices: {error.message}")
            return gr.skip()
        known = [model for _, model in choices]
        return gr.update(choices=choices, value=chosen if chosen in known else known[0])

    async def answer(
        message: str, history: list[dict[str, Any]], model: str | None, key: str | None
    ) -> AsyncIterator[str]:
        if not model:
            raise gr.Error("No voice answers yet. The server may still be starting; try again shortly.")
        messages = [{"role": turn["role"], "content": text_of(turn["content"])} for turn in history]
        messages.append({"role": "user", "content": message})
        said = ""
        try:
            async with (
                client(key) as server,
                await server.chat.completions.create(
                    model=model, messages=messages, stream=True, max_tokens=MAX_TOKENS
                ) as stream,
            ):
                async for chunk in stream:
                    if chunk.choices and chunk.choices[0].delta.content:
                        said += chunk.choices[0].delta.content
                        yield said
        except APIError as error:
            raise gr.Error(f"{model} could not answer: {error.message}", duration=None) from None

    with gr.Blocks(title="Polytone", fill_height=True, analytics_enabled=False) as page:
        gr.Markdown("# Polytone\nOne base model, many brand voices. Pick a voice and talk to it.")
        with gr.Row():
            voice = gr.Dropdown(label="Voice", choices=[], interactive=True, scale=3)
            key = gr.Textbox(label="Key (if the server needs one)", type="password", scale=1)
        gr.ChatInterface(
            answer,
            additional_inputs=[voice, key],
            chatbot=gr.Chatbot(label="Conversation", height="60vh", sanitize_html=True, buttons=["copy", "copy_all"]),
            textbox=gr.Textbox(
                placeholder="Ask as a customer would",
                label="Message",
                show_label=False,
                submit_btn=True,
                stop_btn=True,
            ),
            concurrency_limit=TESTERS_AT_ONCE,
            api_visibility="private",
        )
        for moment in (page.load, voice.focus, key.submit):
            moment(refresh, [voice, key], voice, api_visibility="private")
    return page


def label(card: Any) -> str:
    version = getattr(card, "version", card.id)
    return f"{card.id} ({version.partition('@')[2]})" if "@" in version else f"{card.id} (base)"


def text_of(content: Any) -> str:
    """A turn's text; Gradio stores it as a string or as parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))


def launch(url: str, port: int) -> None:
    """Serve the page alone on loopback."""
    build_page(url).launch(server_name="127.0.0.1", server_port=port, theme=theme(), footer_links=[], quiet=False)
