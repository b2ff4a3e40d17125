"""The monitor tab in a real browser: what was planted is what is shown."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from polytone.contract.version_id import voice_of
from polytone.serve.auth.keys import Kind
from polytone.serve.database.audit import read_audit
from polytone.serve.database.session import now, writing
from polytone.serve.database.tables import AnswerRow, FeedbackRow
from polytone.serve.engine.base import EngineError
from tests.serve.drift.test_drift import PLAIN, answers, referenced, report, work
from tests.support.pages import Pages, choose, needs_browser, serving_pages
from tests.support.serving import Server, eventually

pytestmark = [needs_browser, pytest.mark.slow]
TIMEOUT = 15_000


@pytest.fixture
async def pages(tmp_path: Path) -> AsyncIterator[Pages]:
    async with serving_pages(tmp_path) as pages:
        yield pages


async def open_monitor(pages: Pages, shows: str = "The server is ready") -> Page:
    page = await pages.open()
    await page.get_by_role("tab", name="Monitor").click(timeout=TIMEOUT)
    await expect(page.locator("#health")).to_contain_text(shows, timeout=TIMEOUT)
    return page


async def refresh(page: Page) -> None:
    await page.get_by_role("button", name="Refresh").locator("visible=true").click()


def plant(server: Server, version: str, minutes_ago: float, number: int, **changes: Any) -> list[str]:
    """Answers of one moment, each with a first token after a tenth of a second more; returns their ids."""
    at = now() - timedelta(minutes=minutes_ago)
    ids = [f"{version}-{minutes_ago}-{i}" for i in range(number)]
    with writing(server.services.database) as session:
        for i, one in enumerate(ids):
            fields = {
                "id": one,
                "at": at,
                "voice": voice_of(version),
                "version": version,
                "base": server.base.id,
                "policy": "none",
                "status": 200,
                "parameters": {},
                "prompt_tokens": 7,
                "completion_tokens": 11,
                "first_token_seconds": (i + 1) / 10,
                "seconds": 1.0,
                "observed": True,
            }
            session.add(AnswerRow(**{**fields, **changes}))
    return ids


def thumb(server: Server, completion: str, version: str, value: str) -> None:
    with writing(server.services.database) as session:
        session.add(
            FeedbackRow(
                id=f"f-{completion}"[:32],
                at=now() - timedelta(minutes=1),
                target="completion",
                target_id=completion,
                voice=voice_of(version),
                version=version,
                key="thumb",
                value=value,
                annotator="kim",
                annotator_kind="human",
                observed=True,
            )
        )


async def test_what_was_planted_is_counted_and_drawn(pages: Pages) -> None:
    server = pages.server
    acme, zest = server.add("acme", 1), server.add("zest", 2)
    rated = plant(server, acme, 30, 4)
    plant(server, acme, 10, 2, first_token_seconds=0.2)
    plant(server, acme, 20, 1, status=500, completion_tokens=0, first_token_seconds=None)
    plant(server, zest, 15, 3, first_token_seconds=2.5)
    plant(server, zest, 5 * 60, 6)
    for completion, value in zip(rated, ("up", "up", "up", "down"), strict=True):
        thumb(server, completion, acme, value)

    page = await open_monitor(pages)
    await choose(page, "hour", "Period", exact=True)
    totals = page.locator("#totals")
    await expect(totals).to_contain_text("The last hour", timeout=TIMEOUT)
    of = {version: totals.get_by_role("row").filter(has_text=version).get_by_role("cell") for version in (acme, zest)}
    await expect(of[acme]).to_have_text(["6", "1 (14.3 %)", "49", "66", "200 ms", "375 ms", "3 up, 1 down (75 % up)"])
    await expect(of[zest]).to_have_text(["3", "0", "21", "33", "2.5 s", "2.5 s", "none"])
    assert sorted(await drawn(page, "requests")) == sorted([(acme, 4), (acme, 2), (acme, 1), (zest, 3)])
    assert await drawn(page, "errors") == [(acme, 1)]
    assert sorted(await drawn(page, "tokens")) == sorted([(acme, 72), (acme, 36), (acme, 7), (zest, 54)])
    for chart in ("median", "slow", "thumbs"):
        await expect(page.locator(f"#chart-{chart} path[aria-roledescription='line mark']").first).to_be_attached()

    await choose(page, "zest", "Voice", exact=True)
    await expect(totals).not_to_contain_text(acme)
    await choose(page, "24 hours", "Period", exact=True)
    await expect(of[zest].first).to_have_text("9", timeout=TIMEOUT)
    assert sorted(await drawn(page, "requests")) == [(zest, 3), (zest, 6)]


async def drawn(page: Page, chart: str) -> list[tuple[str, int]]:
    """The version and height of each bar, as the diagram tells them to a screen reader."""
    bars = page.locator(f"#chart-{chart} path[aria-roledescription='bar']")
    await expect(bars.first).to_be_attached(timeout=TIMEOUT)
    labels = [await bar.get_attribute("aria-label") or "" for bar in await bars.all()]
    found = [re.search(r"in [\w ]+: (\d+)(?:;.*)?; version: (\S+)", label) for label in labels]
    return [(match[2], int(match[1])) for match in found if match]


async def test_an_alarm_is_told_in_words_and_acknowledged(pages: Pages) -> None:
    server = pages.server
    version = referenced(server)
    answers(server, version, PLAIN)
    work(server)
    words = (await report(server, version))["tone"]["alarm"]["words"]

    page = await open_monitor(pages)
    button = page.get_by_role("button", name=f"Acknowledge tone of {version}")
    await expect(button).to_be_visible(timeout=TIMEOUT)
    alarm = page.locator(".alarm").filter(has_text=f"{version}: tone")
    await expect(alarm).to_contain_text(words[1:])
    await expect(alarm).to_contain_text("conversations before the alarm")
    await expect(page.locator("#drift")).to_contain_text("at most one alarm in 20,000 conversations")

    await button.click()
    await expect(page.locator(".confirmation .preview:visible")).to_contain_text("Its detector restarts")
    assert (await report(server, version))["tone"]["alarm"]
    await page.get_by_role("button", name="Confirm", exact=True).click()
    await expect(page.get_by_role("status").filter(has_text="is acknowledged")).to_be_visible(timeout=TIMEOUT)
    assert (await report(server, version))["tone"]["alarm"] is None
    await expect(button).to_have_count(0)
    assert read_audit(server.services.database, 1)[0].action == "acknowledge"


async def test_an_engine_that_is_down_is_told_with_its_reason_until_it_is_back(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = pages.server
    page = await open_monitor(pages)
    good = server.engine.start

    async def start() -> None:
        raise EngineError("no memory is left on the card", code="engine_failed", status=503)

    monkeypatch.setattr(server.engine, "start", start)
    server.engine.up = False
    await eventually(lambda: "no memory" in (server.services.status.problem or ""))
    await refresh(page)
    health = page.locator("#health")
    await expect(health.get_by_role("alert")).to_contain_text(
        "The server is not ready: no memory is left on the card.", timeout=TIMEOUT
    )
    monkeypatch.setattr(server.engine, "start", good)
    await eventually(server.supervisor.ready, seconds=10)
    await refresh(page)
    await expect(health.get_by_role("status")).to_contain_text("The server is ready", timeout=TIMEOUT)
    await expect(health.get_by_role("alert")).to_have_count(0)


async def test_without_traffic_or_a_key_the_page_says_what_to_do(pages: Pages) -> None:
    page = await open_monitor(pages)
    await expect(page.locator("#totals")).to_contain_text("No requests", timeout=TIMEOUT)
    await expect(page.locator("#drift")).to_contain_text("No detectors yet")
    await expect(page.get_by_text("No active alarms.")).to_be_visible()
    header = pages.server.key(Kind.ADMIN)
    await refresh(page)
    for panel in ("#totals", "#drift"):
        await expect(page.locator(panel)).to_contain_text("This server needs a key", timeout=TIMEOUT)
    await page.get_by_label("Admin key").fill(header["authorization"].removeprefix("Bearer "))
    await page.get_by_label("Admin key").press("Enter")
    await expect(page.locator("#totals")).to_contain_text("No requests", timeout=TIMEOUT)


async def test_a_page_that_refreshes_by_itself_shows_what_came(pages: Pages) -> None:
    acme = pages.server.add("acme", 1)
    page = await pages.open()
    await page.clock.install()
    await page.get_by_role("tab", name="Monitor").click(timeout=TIMEOUT)
    await expect(page.locator("#totals")).to_contain_text("No requests", timeout=TIMEOUT)
    await page.get_by_label("Refresh every 30 seconds").check()
    plant(pages.server, acme, 1, 2)
    async with asyncio.timeout(15):
        while not await page.locator("#totals").get_by_text(acme).count():  # the timer starts when the server says so
            await page.clock.fast_forward(31_000)
