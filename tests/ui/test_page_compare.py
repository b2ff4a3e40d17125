"""The compare tab in a real browser, over the double."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Locator, Page, expect

from tests.support.pages import Pages, needs_browser, serving_pages

pytestmark = [needs_browser, pytest.mark.slow]

PROMPTS = [f"Question number {number}" for number in range(1, 11)]
VOTES = ("a", "b", "tie", "both_bad")
KEYS = {"a": "a", "b": "b", "tie": "t", "both_bad": "x"}
WORDS = {"acme": "walnut ", "zest": "hazel "}


@pytest.fixture
async def pages(tmp_path: Path) -> AsyncIterator[Pages]:
    expect.set_options(timeout=15_000)
    async with serving_pages(tmp_path, step_seconds=0.02) as pages:
        yield pages


async def two_voices(pages: Pages) -> dict[str, str]:
    """The versions of two voices that say what does not name them."""
    versions = {name: await pages.server.voice(name, seed) for seed, name in enumerate(WORDS, 1)}
    pages.server.engine.says = {version: [WORDS[name]] * 5 for name, version in versions.items()}
    return versions


async def compare_tab(pages: Pages) -> Page:
    page = await pages.open()
    await page.get_by_role("tab", name="Compare").click()
    await expect(page.locator(".token")).to_have_count(2)
    return page


def text(page: Page, side: str) -> Locator:
    return page.locator(f"#side-{side} .block.side-text")


async def ask(page: Page, question: str) -> None:
    await page.get_by_label("Question", exact=True).fill(question)
    await page.get_by_label("Question", exact=True).press("Enter")


async def test_ten_prompts_are_compared_blind(pages: Pages) -> None:
    versions = await two_voices(pages)
    page = await compare_tab(pages)
    await page.get_by_label("Your name").fill("Robin")
    await page.get_by_role("button", name="A set of prompts").click()
    await page.get_by_label("Prompts, one per line").fill("\n".join(PROMPTS))
    await page.get_by_role("button", name="Start with the first prompt").click()

    wanted = []
    for number, prompt in enumerate(PROMPTS):
        vote = VOTES[number % 4]
        await expect(page.get_by_label("Prompt", exact=True)).to_have_value(prompt)
        await expect(page.get_by_text(f"{number + 1} of 10", exact=True)).to_be_visible()
        await expect(page.locator("#vote-a")).to_be_visible()
        shown = await page.locator("#sides").inner_html()
        assert not [name for name in (*versions, *versions.values()) if name in shown]
        left = "acme" if "walnut" in await text(page, "a").inner_text() else "zest"
        right = "zest" if left == "acme" else "acme"
        await expect(text(page, "b")).to_contain_text((WORDS[right] * 5).strip())
        if number == 0:  # what is typed is no vote
            await page.get_by_label("Question", exact=True).press_sequentially("abtx")
            await expect(page.locator("#vote-a")).to_be_visible()
        if number % 3 == 0:
            await page.locator(f"#vote-{vote}").click()
        else:
            await page.locator("#sides").get_by_role("heading").first.click()  # out of any text box
            await page.keyboard.press(KEYS[vote])
        told = f"A was {versions[left]}, B was {versions[right]}"
        await expect(page.locator("#compare-notice")).to_contain_text(told)
        value = vote if vote in ("tie", "both_bad") else {"a": left, "b": right}[vote]
        wanted.append(({"acme": "a", "zest": "b"}.get(value, value), "a" if left == "acme" else "b"))

    await expect(page.get_by_text("All 10 prompts are done.")).to_be_visible()
    given = await pages.feedback()
    assert [(one["value"], one["pair"]["shown"]) for one in given] == wanted
    assert len({one["pair"]["a"] for one in given}) == len(given) == 10
    for one in given:
        owners = [pages.server.services.recorder.find_completion(one["pair"][letter]) for letter in "ab"]
        assert [owner and owner.version for owner in owners] == [versions["acme"], versions["zest"]]
        assert (one["pair"]["blind"], one["annotator"]) == (True, {"id": "Robin", "kind": "human"})
    won = sum(value == "a" for value, _ in wanted)
    lost = sum(value == "b" for value, _ in wanted)
    row = page.locator("#win-rate tbody tr")
    await expect(row).to_have_count(1)
    cells = [*versions.values(), str(won), str(lost), "2", "2"]
    assert [one.strip() for one in await row.locator("th, td").all_inner_texts()][:6] == cells
    await expect(page.locator("#win-rate")).to_contain_text(f"of {won + lost} decided vote")


async def test_one_side_fails_and_the_others_answer(pages: Pages) -> None:
    versions = await two_voices(pages)
    page = await compare_tab(pages)
    chosen = page.get_by_label("Voices to compare", exact=False)
    await chosen.click()
    await chosen.press_sequentially("acme@000000000000")
    await chosen.press("Enter")
    await expect(page.locator(".token")).to_have_count(3)
    await ask(page, "Where is my parcel?")
    await expect(page.locator("#side-c")).to_contain_text("No answer: ")
    await expect(page.locator("#side-c")).to_contain_text("acme@000000000000")
    await expect(text(page, "a")).to_contain_text("walnut walnut")
    await expect(page.locator("#side-a")).to_contain_text(re.compile(rf"{versions['acme']} · 5 tokens · first token"))
    await expect(page.locator("#side-b")).to_contain_text(re.compile(rf"{versions['zest']} · 5 tokens"))
    await expect(page.locator("#side-d")).to_be_hidden()
    await expect(page.locator("#vote-a")).to_be_hidden()
    assert {one["messages"][0]["content"] for one in pages.server.engine.requests[-2:]} == {"Where is my parcel?"}


async def test_a_blind_side_that_fails_is_named_once_nothing_is_left_to_vote_on(pages: Pages) -> None:
    versions = await two_voices(pages)
    page = await compare_tab(pages)
    await pages.silence("zest")
    await ask(page, "Where is my parcel?")
    failed = page.locator("#sides").get_by_text("No answer: ")
    await expect(failed).to_contain_text("zest")
    await expect(page.locator("#sides")).to_contain_text(versions["acme"])
    await expect(page.locator("#vote-a")).to_be_hidden()
    await expect(page.get_by_role("button", name="Ask again")).to_be_visible()


async def test_stop_ends_every_side(pages: Pages) -> None:
    await two_voices(pages)
    pages.server.engine.says = ["word "] * 400
    page = await compare_tab(pages)
    await ask(page, "Tell me everything")
    await expect(text(page, "b")).to_contain_text("word word")
    await page.get_by_role("button", name="Stop").click()
    await asyncio.wait_for(quiet(pages), 10)
    await expect(page.locator("#sides").get_by_text("stopped")).to_have_count(2)
    await expect(page.locator("#vote-a")).to_be_hidden()
    pages.server.engine.says = ["short "] * 5
    await page.get_by_role("button", name="Ask again").click()
    await expect(page.locator("#vote-a")).to_be_visible()
    await expect(page.get_by_label("Prompt", exact=True)).to_have_value("Tell me everything")


async def quiet(pages: Pages) -> None:
    while pages.server.engine.running:
        await asyncio.sleep(0.01)


async def test_a_file_of_prompts_is_compared_with_names_shown(pages: Pages, tmp_path: Path) -> None:
    versions = await two_voices(pages)
    page = await compare_tab(pages)
    await page.get_by_label("Blind").uncheck()
    await page.get_by_role("button", name="A set of prompts").click()
    start = page.get_by_role("button", name="Start with the first prompt")
    await start.click()
    await expect(page.get_by_text("There are no prompts")).to_be_visible()
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Where is my parcel?"}]
    row = {"messages": [*messages, {"role": "assistant", "content": "On its way."}]}
    file = tmp_path / "held-out.jsonl"
    file.write_text(json.dumps(row))
    await page.locator("input[type=file]").first.set_input_files(file)
    await expect(page.get_by_text("held-out")).to_be_visible()
    await start.click()
    await expect(page.get_by_role("heading", name=f"A: {versions['acme']}")).to_be_visible()
    await expect(page.locator("#vote-b")).to_be_visible()
    assert [one["messages"] for one in pages.server.engine.requests[-2:]] == [messages, messages]
    await page.keyboard.press("b")
    await expect(page.locator("#compare-notice")).to_contain_text("you preferred B")
    (given,) = await pages.feedback()
    assert (given["value"], given["pair"]["shown"], given["pair"]["blind"]) == ("b", "a", False)
    await expect(page.locator("#win-rate")).to_contain_text("(names shown)")
