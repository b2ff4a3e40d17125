"""The pages: a tab for every task of testers and operators."""

import os
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from .api import Server
from .chat.tab import chat_tab
from .compare.tab import compare_tab
from .monitor.tab import monitor_tab
from .review.tab import review_tab
from .shell import QUIET, Shell
from .voices.tab import voices_tab

FONTS = ["system-ui", "sans-serif"]
MONO = ["ui-monospace", "monospace"]
HERE = Path(__file__).parent
HOUR = 3600  # seconds that a file is kept that was chosen and not sent
LARGEST_FILE = "1gb"
# Whatever a model says, the page loads nothing from other hosts: no picture tells a stranger who reads it.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; base-uri 'self'"
HEAD = f"""<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">"""


def page_app(url: str, path: str) -> FastAPI:
    """An app with the pages under `path`; they use the API at `url`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app, build_page(url), path=path, footer_links=[], ssr_mode=False, max_file_size=LARGEST_FILE, **looks()
    )
    return app


def launch(url: str, port: int) -> None:
    """Serve the pages alone on loopback."""
    build_page(url).launch(
        server_name="127.0.0.1", server_port=port, footer_links=[], max_file_size=LARGEST_FILE, **looks()
    )


def looks() -> dict[str, Any]:
    script = f"<script>{(HERE / 'page.js').read_text()}</script>"
    return {"theme": theme(), "css_paths": HERE / "style.css", "head": HEAD + script}


def theme() -> gr.themes.Base:
    """Local fonts only: the page loads nothing from other hosts. Every text has enough contrast."""
    plain = gr.themes.Default(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=MONO, radius_size="sm")
    return plain.set(
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
    )


def build_page(url: str) -> gr.Blocks:
    with gr.Blocks(title="Polytone", analytics_enabled=False, fill_width=True, delete_cache=(HOUR, HOUR)) as page:
        with gr.Row(elem_id="top"):
            gr.Markdown("# Polytone\nOne base model, many brand voices.", elem_id="brand")
            tester = gr.Textbox("", label="Your name", placeholder="for your feedback", max_length=100, min_width=100)
            key = gr.Textbox("", label="Key", placeholder="if one is needed", type="password", min_width=100)
            admin = gr.Textbox("", label="Admin key", placeholder="to manage", type="password", min_width=100)
        who = [tester, key, admin]
        visitor = gr.BrowserState(["", "", ""], storage_key="polytone-visitor", secret="polytone")  # noqa: S106
        shell = Shell(Server(url), key, admin, tester)
        with gr.Tabs(elem_id="tabs"):
            for name, build in TABS.items():
                with gr.Tab(name, id=name.lower()) as tab:
                    build(shell, page, tab)
        page.load(remembered, visitor, who, **QUIET)
        for box in who:
            box.change(lambda *typed: list(typed), who, visitor, **QUIET)
    return page


def remembered(who: list[str]) -> list[Any]:
    """Name and keys of the last visit. Where there is none, text typed while the page loaded stays."""
    return [typed or gr.skip() for typed in who]


TABS = {
    "Chat": chat_tab,
    "Compare": compare_tab,
    "Review": review_tab,
    "Voices": voices_tab,
    "Monitor": monitor_tab,
}
