"""The chat page in a real browser: pick a voice, chat, see the answer grow, stop it, go on. Needs Debian's chromium."""

import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

from ..conftest import TinyHome, polytone, served

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

BASE = "tiny"
GROWN = 3
# In the page: the small model is done before a click from outside arrives.
STOP_WHEN_IT_HAS_GROWN = f"""async () => {{
    const lengths = new Set();
    for (const began = Date.now(); Date.now() - began < 20000; await new Promise(go => setTimeout(go, 5))) {{
        const answers = document.querySelectorAll(".message.bot:not(.pending)");
        const stop = document.querySelector(".stop-button");
        if (answers.length < 2 || !stop) continue;
        lengths.add(answers[answers.length - 1].innerText.length);
        if (lengths.size >= {GROWN}) {{ stop.click(); break; }}
    }}
    return lengths.size;
}}"""
SAID = re.compile(r"\S")


@pytest.fixture
async def page(mine: TinyHome, tmp_path: Path) -> AsyncIterator[Page]:
    """The page of a server with a base that talks on and on, and a voice that says its name."""
    chromium = shutil.which("chromium")
    assert chromium, "no chromium on the PATH: apt-get install chromium"
    version = mine.voices["acme"].version
    with served(mine.home.root, tmp_path / "log", POLYTONE_BASE=BASE) as server:
        server.until_ready()
        for step in ("publish", "promote"):
            done = polytone("adapters", step, version, home=mine.home.root, POLYTONE_BASE=BASE)
            assert done.returncode == 0, done.stderr
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            opened = await browser.new_page()
            elsewhere: list[str] = []
            opened.on("request", lambda request: elsewhere.append(request.url))
            await opened.goto(f"{server.url}/ui/")
            yield opened
            assert [url for url in elsewhere if not url.startswith((server.url, "data:", "blob:"))] == []
            await browser.close()


async def choose(page: Page, voice: str) -> None:
    await page.get_by_label("Voice").click()
    await page.get_by_role("option", name=voice).click()


async def ask(page: Page, text: str) -> None:
    box = page.locator("textarea")
    await box.fill(text)
    await box.press("Enter")


async def test_a_tester_picks_a_voice_chats_and_stops_an_answer(page: Page) -> None:
    answers = page.locator(".message.bot:not(.pending)")
    stop = page.locator(".stop-button")
    await choose(page, "acme (")
    await ask(page, "question 3")
    await expect(answers.last).to_have_text(SAID, timeout=30_000)
    await expect(stop).to_be_hidden(timeout=30_000)
    await choose(page, f"{BASE} (base)")
    await ask(page, "question 4")
    assert await page.evaluate(STOP_WHEN_IT_HAS_GROWN) >= GROWN
    await expect(stop).to_be_hidden(timeout=10_000)
    metrics = await (await page.request.get(f"{page.url.partition('/ui')[0]}/metrics")).text()
    assert f'polytone_requests_total{{adapter="{BASE}",status="499",version="{BASE}"}} 1.0' in metrics  # cut short
    await choose(page, "acme (")
    await ask(page, "question 5")
    await expect(answers).to_have_count(3, timeout=30_000)
    await expect(answers.last).to_have_text(SAID, timeout=30_000)
