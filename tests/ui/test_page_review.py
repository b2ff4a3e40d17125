"""The review tab in a real browser, over the double."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from polytone.serve.auth.keys import Kind
from polytone.serve.traffic.content_policy import Policies, Policy
from polytone.serve.traffic.reviews import Reviews
from polytone.ui.review.view import LOADING
from tests.serve.traffic.test_export import ask, give
from tests.support.pages import Pages, needs_browser, serving_pages

pytestmark = [needs_browser, pytest.mark.slow]


@pytest.fixture
async def pages(tmp_path: Path) -> AsyncIterator[Pages]:
    expect.set_options(timeout=15_000)
    async with serving_pages(tmp_path) as pages:
        yield pages


async def rated_down(pages: Pages, *questions: str) -> list[str]:
    """Answers with a thumb down each, in the order in which they come up."""
    asked = []
    for question in questions:
        asked.append(await ask(pages.server, question))
        await give(pages.server, asked[-1], "thumb", value="down")
    await pages.server.services.recorder.flush()
    return asked


async def review_tab(pages: Pages, name: str = "Robin") -> Page:
    page = await pages.open()
    await page.get_by_role("tab", name="Review").click()
    await expect(page.get_by_text(LOADING)).to_be_hidden()
    await page.get_by_label("Your name").fill(name)
    return page


async def test_an_answer_is_edited_one_is_someone_elses_and_then_nothing_waits(pages: Pages) -> None:
    version = await pages.server.voice("acme", 1)
    first, second, third = await rated_down(pages, "Where is my parcel?", "And my refund?", "Are you open?")
    await give(pages.server, first, "comment", text="Far too stiff")
    page = await review_tab(pages)
    await expect(page.get_by_text("Waiting: 3 (3 thumbs down).")).to_be_visible()
    await page.get_by_role("button", name="Next answer").click()
    await expect(page.get_by_label("chatbot conversation").get_by_text("Where is my parcel?")).to_be_visible()
    await expect(page.locator("#review-reason")).to_contain_text("it got a thumb down")
    await expect(page.locator("#review-reason")).to_contain_text(f"{version} · answered")
    await expect(page.locator("#review-feedback")).to_contain_text("ann: “Far too stiff”")

    await page.get_by_role("button", name="Correct it").click()
    box = page.get_by_label("Corrected answer")
    await expect(box).to_be_focused()
    await expect(box).to_have_value(" ".join([version] * 5))
    await box.fill("It left us this morning!")
    await page.get_by_role("button", name="Save the correction").click()
    await expect(page.locator("#review-notice")).to_contain_text("Your correction is saved.")
    await expect(page.get_by_text("And my refund?")).to_be_visible()
    await expect(box).to_be_hidden()
    await expect(page.get_by_text("Waiting: 2 (2 thumbs down).")).to_be_visible()
    corrections = [one for one in await pages.feedback() if one["key"] == "correction"]
    assert [(one["text"], one["annotator"]["id"]) for one in corrections] == [("It left us this morning!", "Robin")]
    assert corrections[0].get("completion_id", corrections[0].get("target_id")) == first

    reviews = Reviews(pages.server.services.database)
    reviews.lease("Robin", seconds=-1)  # the time is over
    taken = reviews.lease("Bo")
    assert taken is not None
    assert taken.review.completion_id == second
    await page.get_by_role("button", name="Accept").click()
    await expect(page.locator("#review-notice")).to_contain_text("is being reviewed by Bo.")
    await expect(page.get_by_text("Are you open?")).to_be_visible()

    await page.get_by_role("button", name="Reject").press("Enter")
    await expect(page.locator("#review-notice")).to_contain_text("left out of exports")
    await expect(page.locator("#review-notice")).to_contain_text("The review queue is empty")
    await expect(page.locator("#review-item")).to_be_hidden()
    states = {(one["state"], one["reason"]): one["count"] for one in await counts(pages)}
    assert states == {(state, "thumbs_down"): 1 for state in ("open", "edited", "rejected")}
    assert pages.server.services.recorder.find_completion(third) is not None


async def counts(pages: Pages) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await pages.server.client.get("/admin/reviews")).json()["reviews"]
    return found


async def test_what_was_written_stays_while_the_answer_is_held(pages: Pages) -> None:
    await pages.server.voice("acme", 1)
    await rated_down(pages, "Where is my parcel?")
    page = await review_tab(pages)
    await page.get_by_role("button", name="Next answer").click()
    await page.get_by_role("button", name="Correct it").click()
    box = page.get_by_label("Corrected answer")
    await expect(box).to_be_focused()
    await box.fill("It is")
    await page.get_by_role("button", name="Next answer").click()
    await expect(page.get_by_text("This answer is still reserved for you")).to_be_visible()
    await expect(box).to_have_value("It is")


async def test_texts_that_are_not_kept_are_named(tmp_path: Path) -> None:
    async with serving_pages(tmp_path, policies=Policies(Policy.NONE)) as pages:
        await pages.server.voice("acme", 1)
        await rated_down(pages, "Where is my parcel?")
        page = await review_tab(pages)
        await page.get_by_role("button", name="Next answer").click()
        await expect(page.get_by_text("keeps no texts")).to_be_visible()
        await expect(page.get_by_role("button", name="Correct it")).to_be_hidden()
        await page.get_by_role("button", name="Reject").click()
        await expect(page.locator("#review-notice")).to_contain_text("The review queue is empty")


async def test_a_key_of_another_kind_is_told(pages: Pages) -> None:
    await pages.server.voice("acme", 1)
    chat, admin = (pages.server.key(kind)["authorization"].split()[1] for kind in (Kind.INFERENCE, Kind.ADMIN))
    page = await review_tab(pages)
    waiting = page.locator("#review-waiting")
    await expect(waiting).to_contain_text("needs a key")
    for secret, words in ((chat, "needs another kind of key"), (admin, "The review queue is empty.")):
        await page.get_by_label("Admin key").fill(secret)
        await page.get_by_label("Admin key").press("Enter")
        await expect(waiting).to_contain_text(words)
