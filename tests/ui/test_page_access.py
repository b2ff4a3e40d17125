"""Every tab by keyboard, by a screen reader's names, in the dark and on a narrow screen."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from tests.support.pages import Pages, asked, needs_browser, open_chat, serving_pages

pytestmark = [needs_browser, pytest.mark.slow]

TABS = ("Chat", "Compare", "Review", "Voices", "Monitor")
SERIOUS = {"serious", "critical"}


@pytest.fixture
async def pages(tmp_path: Path) -> AsyncIterator[Pages]:
    async with serving_pages(tmp_path) as pages:
        yield pages


async def show(page: Page, name: str) -> None:
    """Open a tab, where the screen is narrow through the menu of those that do not fit."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not await tab.is_visible():
        await page.locator("#tabs .overflow-menu > button").click()
        await page.locator("#tabs .overflow-dropdown").get_by_text(name, exact=True).click()
    else:
        await tab.click()
    await expect(page.get_by_role("tab", name=name, exact=True)).to_have_attribute("aria-selected", "true")
    await page.wait_for_timeout(1000)  # what the tab loads


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_tab_has_a_serious_fault_of_access(pages: Pages, scheme: str) -> None:
    acme = await pages.server.voice("acme", 1)
    page = await open_chat(pages, path=f"/ui/?__theme={scheme}")
    await asked(page, "Where is my parcel?", acme)
    for name in TABS:
        await show(page, name)
        found = await Axe().run(page)
        faults = [fault for fault in found.response["violations"] if fault["impact"] in SERIOUS]
        told = [(fault["id"], [node["html"][:160] for node in fault["nodes"][:4]]) for fault in faults]
        assert told == [], f"{name}, {scheme}"


async def test_a_narrow_screen_shows_every_tab_without_scrolling_sideways(pages: Pages) -> None:
    acme = await pages.server.voice("acme", 1)
    page = await open_chat(pages, viewport={"width": 380, "height": 800})
    await asked(page, "Where is my parcel?", acme)
    for name in TABS:
        await show(page, name)
        wide = await page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, f"{name} is {wide} pixels too wide"


async def test_a_question_is_asked_by_keyboard_alone(pages: Pages) -> None:
    await pages.server.voice("acme", 1)
    page = await open_chat(pages)
    await page.get_by_role("tab", name="Chat").focus()
    for _ in range(40):
        await page.keyboard.press("Tab")
        if await page.evaluate("document.activeElement.matches('#message textarea')"):
            break
    await page.keyboard.type("Where is my parcel?")
    await page.keyboard.press("Enter")
    await expect(page.locator("#transcript").get_by_text("tokens").first).to_be_visible(timeout=15_000)
