"""The pages over the double, on a real socket, in Debian's Chromium."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.async_api import Browser, Locator, Page, async_playwright, expect

from bench.running import free_port
from polytone.serve.api.ui_mount import PAGE_PATH, UiMiddleware
from polytone.ui.page import page_app

from .serving import Server, serving

CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")


@dataclass
class Pages:
    """A server with its pages under `url`, and a browser to look at them."""

    server: Server
    url: str
    browser: Browser

    async def open(self, path: str = "/ui/", **context: Any) -> Page:
        opened = await (await self.browser.new_context(**context)).new_page()
        await opened.goto(f"{self.url}{path}")
        return opened

    async def feedback(self) -> list[dict[str, Any]]:
        """What the server was told, in that order."""
        feedback: list[dict[str, Any]] = (await self.server.client.get("/v1/feedback")).json()["feedback"]
        return feedback

    async def silence(self, voice: str) -> None:
        """Let nobody answer for the voice, and wait until nobody does."""
        assert (await self.server.client.delete(f"/admin/adapters/{voice}")).status_code == 200
        async with asyncio.timeout(10):
            while any(card["id"] == voice for card in (await self.server.client.get("/v1/models")).json()["data"]):
                await asyncio.sleep(0.05)


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    expect.set_options(timeout=15_000)  # for two busy cores; Playwright's own is five seconds
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        await browser.close()


@asynccontextmanager
async def serving_pages(root: Path, **settings: Any) -> AsyncIterator[Pages]:
    async with serving(root, **settings) as server:
        url = f"http://127.0.0.1:{(port := free_port())}"
        page = page_app(url, PAGE_PATH)  # not in a thread: Gradio would leave event loops open there
        app = UiMiddleware(server.app, page)  # type: ignore[arg-type]
        listening = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, lifespan="off"))
        running = asyncio.create_task(listening.serve())
        try:
            async with page.router.lifespan_context(page), browsing() as browser:
                yield Pages(server, url, browser)
        finally:
            listening.should_exit = True
            await running


async def open_chat(pages: Pages, voice: str = "acme", path: str = "/ui/", **context: Any) -> Page:
    """The chat tab with a voice chosen."""
    page = await pages.open(path, **context)
    await expect(field(page, "Voice")).to_have_value(re.compile(f"^{voice}"), timeout=15_000)
    return page


async def ask(page: Page, text: str) -> None:
    box = page.get_by_placeholder("Ask as a customer would")
    await box.fill(text)
    await box.press("Enter")


async def asked(page: Page, text: str, version: str, seconds: float = 15) -> None:
    """Ask, and wait until the version's answer is whole and kept: only then can something else be asked."""
    before = await facts(page, version).count()
    await ask(page, text)
    await expect(facts(page, version)).to_have_count(before + 1, timeout=seconds * 1000)
    await expect(page.locator("#message .stop-button")).to_have_count(0, timeout=seconds * 1000)


def facts(page: Page, version: str) -> Locator:
    """The lines under answers of a version."""
    return page.locator("#transcript").get_by_role("button", name=re.compile(rf"^{re.escape(version)} · \d+ tokens"))


def field(page: Page, label: str) -> Locator:
    """The field with this label in the tab that is shown."""
    return page.get_by_label(label, exact=True).locator("visible=true")


async def choose(page: Page, option: str, of: str = "Voice", exact: bool = False) -> None:
    await field(page, of).click()
    await page.get_by_role("option", name=option, exact=exact).click()
