"""The chat tab in a real browser, over the double."""

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, expect

from bench.running import free_port
from polytone.ui.api import Api
from tests.support.pages import Pages, ask, asked, choose, facts, field, needs_browser, open_chat, serving_pages

pytestmark = [needs_browser, pytest.mark.slow]


@pytest.fixture
async def pages(tmp_path: Path) -> AsyncIterator[Pages]:
    async with serving_pages(tmp_path, step_seconds=0.02) as pages:
        yield pages


async def kept(pages: Pages) -> list[dict[str, Any]]:
    found = (await pages.server.client.get("/v1/conversations")).json()["conversations"]
    return [(await pages.server.client.get(f"/v1/conversations/{one['id']}")).json() for one in found]


async def test_a_tester_changes_voices_reloads_and_finds_the_conversation_again(pages: Pages) -> None:
    acme, zest = await pages.server.voice("acme", 1), await pages.server.voice("zest", 2)
    page = await open_chat(pages)
    await asked(page, "Where is my parcel?", acme)
    await choose(page, "zest (")
    await asked(page, "And my refund?", zest)

    conversation = (await kept(pages))[0]
    assert [turn["role"] for turn in conversation["turns"]] == ["user", "assistant"] * 2
    assert [turn["details"].get("version") for turn in conversation["turns"]][1::2] == [acme, zest]
    assert pages.server.engine.requests[-1]["messages"][0]["content"] == "Where is my parcel?"

    await expect(page).to_have_url(re.compile(rf"conversation={conversation['id']}$"))
    again = await pages.open(page.url.removeprefix(pages.url))
    await expect(again.get_by_text("And my refund?").first).to_be_visible(timeout=15_000)
    await expect(facts(again, zest)).to_have_count(1)
    await again.get_by_label("Search").fill("nothing like it")
    await expect(again.get_by_text("No conversation matches your search.")).to_be_visible()


async def test_a_slow_look_does_not_replace_a_later_one(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that took long came after the one that was searched for, and stood in its place."""
    acme = await pages.server.voice("acme", 1)
    page = await open_chat(pages)
    await asked(page, "Where is my parcel?", acme)
    asks, begun, may_end = Api.get, asyncio.Event(), asyncio.Event()

    async def slow(self: Api, path: str, **params: Any) -> Any:
        found = await asks(self, path, **params)
        if path == "/v1/conversations" and params["search"] is None:
            begun.set()
            await may_end.wait()
        return found

    monkeypatch.setattr(Api, "get", slow)
    await page.get_by_role("button", name="New conversation").click()
    await begun.wait()
    await page.get_by_label("Search").fill("nothing like it")
    await page.wait_for_timeout(500)
    may_end.set()
    await expect(page.get_by_text("No conversation matches your search.")).to_be_visible()
    await page.wait_for_timeout(500)
    await expect(page.get_by_text("No conversation matches your search.")).to_be_visible()


async def test_a_conversation_is_exported_and_forgotten(pages: Pages) -> None:
    acme = await pages.server.voice("acme", 1)
    page = await open_chat(pages)
    await asked(page, "Where is my parcel?", acme)
    (conversation,) = await kept(pages)
    async with page.expect_download() as saving:
        await page.get_by_role("button", name="Export").click()
    saved = await saving.value
    assert saved.suggested_filename == f"{conversation['id']}.jsonl"
    (line,) = (await saved.path()).read_text().splitlines()
    assert (json.loads(line)["messages"][0]["content"], json.loads(line)["versions"]) == ("Where is my parcel?", [acme])
    await page.get_by_role("button", name="Delete", exact=True).click()
    assert len(await kept(pages)) == 1
    await page.get_by_role("button", name="Delete permanently").click()
    await expect(page.get_by_text("No conversations yet. They are saved here.")).to_be_visible(timeout=15_000)
    assert await kept(pages) == []
    await expect(facts(page, acme)).to_have_count(0)


async def test_a_stopped_answer_stays_as_far_as_it_came(pages: Pages) -> None:
    await pages.server.voice("acme", 1)
    pages.server.engine.says = ["word "] * 400
    page = await open_chat(pages)
    await ask(page, "Tell me everything")
    await expect(page.locator("#transcript").get_by_text("word word")).to_be_visible(timeout=15_000)
    await page.get_by_placeholder("Ask as a customer would").fill("What I type meanwhile")
    await page.locator("#message .stop-button").click()
    await expect(page.locator("#transcript").get_by_role("button", name=re.compile("stopped$"))).to_be_visible()
    await asyncio.wait_for(no_answer_runs(pages), 10)
    await expect(page.get_by_placeholder("Ask as a customer would")).to_have_value("What I type meanwhile")
    turn = (await kept(pages))[0]["turns"][-1]
    assert turn["details"]["finish"] == "stopped"
    assert 0 < len(turn["content"].split()) < 400
    pages.server.engine.says = None
    await ask(page, "Then go on")
    await expect(page.locator("#transcript").get_by_role("button", name=re.compile("tokens"))).to_have_count(1)


async def no_answer_runs(pages: Pages) -> None:
    while pages.server.engine.running:
        await asyncio.sleep(0.01)


async def test_retry_and_edit_keep_what_was_there(pages: Pages) -> None:
    acme = await pages.server.voice("acme", 1)
    page = await open_chat(pages)
    await asked(page, "Where is my parcel?", acme)
    await page.get_by_label("Retry").first.click()
    await expect(page.get_by_text("Branch 2 of 2")).to_be_visible(timeout=15_000)
    await page.get_by_role("button", name="Earlier").click()
    await expect(page.get_by_text("Branch 1 of 2")).to_be_visible()
    await page.get_by_label("Edit").first.click()
    await page.locator("#transcript textarea").fill("Where is my order?")
    await page.get_by_label("Submit").first.click()
    await expect(page.get_by_text("Branch 3 of 3")).to_be_visible(timeout=15_000)
    turns = (await kept(pages))[0]["turns"]
    first = turns[0]["id"]
    assert [turn["content"] for turn in turns if turn["role"] == "user"] == [
        "Where is my parcel?",
        "Where is my order?",
    ]
    assert [turn["parent"] for turn in turns if turn["role"] == "assistant"][:2] == [first, first]


async def test_a_thumb_a_reason_and_a_correction_arrive_with_the_right_answer(pages: Pages) -> None:
    acme = await pages.server.voice("acme", 1)
    page = await open_chat(pages)
    await page.get_by_label("Your name").fill("Robin")
    await asked(page, "Where is my parcel?", acme)
    await asked(page, "And the other one?", acme)
    answer = [turn for turn in (await kept(pages))[0]["turns"] if turn["role"] == "assistant"][-1]

    await page.get_by_label("Bad", exact=True).check()
    await page.get_by_label("off tone").check()
    await page.get_by_label("Comment").fill("Far too stiff")
    await page.get_by_role("button", name="Send feedback").click()
    await expect(page.get_by_text("Your feedback is saved.")).to_be_visible()
    await page.get_by_role("button", name="Correct this answer").click()
    await page.get_by_label("Corrected answer").fill("It left us this morning!")
    await page.get_by_role("button", name="Save correction").click()
    await expect(page.get_by_text("Your correction is saved.")).to_be_visible()

    given = await pages.feedback()
    assert [(one["key"], one["value"], one["text"]) for one in given] == [
        ("thumb", "down", None),
        ("tag", "off tone", None),
        ("comment", None, "Far too stiff"),
        ("correction", None, "It left us this morning!"),
    ]
    assert {one["completion_id"] for one in given} == {answer["completion_id"]}
    assert {one["version"] for one in given} == {acme}
    assert {json.dumps(one["annotator"], sort_keys=True) for one in given} == {'{"id": "Robin", "kind": "human"}'}


async def test_what_a_model_says_is_shown_and_never_run(pages: Pages) -> None:
    await pages.server.voice("acme", 1)
    bad = (
        '<img src=x onerror="window.owned=1"><script>window.owned=2</script><a href="javascript:window.owned=3">go</a>'
    )
    readers: list[Any] = []

    def read_by(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        readers.append(writer)
        writer.close()

    elsewhere = await asyncio.start_server(read_by, "127.0.0.1", 0)
    spy = f"![who reads this](http://127.0.0.1:{elsewhere.sockets[0].getsockname()[1]}/spy.png)"
    pages.server.engine.says = [bad[:9], bad[9:40], bad[40:], f" {spy} end of it"]
    page = await open_chat(pages)
    await ask(page, bad)
    await expect(page.locator("#transcript").get_by_text("end of it").first).to_be_visible(timeout=15_000)
    await expect(page.locator("#transcript").get_by_role("button", name=re.compile("tokens"))).to_have_count(1)
    for link in await page.locator("#transcript a").all():
        assert not (await link.get_attribute("href") or "").startswith("javascript:")
    assert await page.locator("#transcript script, #transcript [onerror]").count() == 0
    assert await page.evaluate("window.owned") is None
    assert readers == []  # nor is a picture fetched, which would tell a stranger that someone read this
    elsewhere.close()


async def test_refusals_are_sentences(pages: Pages) -> None:
    """A voice that nobody answers for any more, and an engine that died and came back."""
    acme = await pages.server.voice("acme", 1)
    page = await open_chat(pages)
    pages.server.engine.says = ["word "] * 400
    await ask(page, "Are you there?")
    await expect(page.locator("#transcript").get_by_text("word word")).to_be_visible(timeout=15_000)
    pages.server.engine.up = False
    await expect(page.get_by_text(re.compile("Interrupted: ")).first).to_be_visible(timeout=15_000)
    pages.server.engine.says = None
    await asyncio.wait_for(ready(pages), 20)
    await asked(page, "And now?", acme)
    await pages.silence("acme")
    await ask(page, "Still there?")
    await expect(page.get_by_text(re.compile("No answer: .*acme")).first).to_be_visible(timeout=15_000)
    assert "Traceback" not in await page.locator("body").inner_text()


async def ready(pages: Pages) -> None:
    while (await pages.server.client.get("/readyz")).status_code != 200:
        await asyncio.sleep(0.05)


async def test_ten_testers_at_once_see_their_own_words_only(pages: Pages) -> None:
    versions = {name: await pages.server.voice(name, seed) for seed, name in enumerate(("acme", "zest"), 1)}
    pages.server.engine.step_seconds = 0.2
    opened = await asyncio.gather(*(pages.open() for _ in range(10)))

    async def story(number: int, page: Page) -> None:
        voice = ("acme", "zest")[number % 2]
        await expect(field(page, "Voice")).to_have_value(re.compile("^acme"), timeout=120_000)
        if voice == "zest":
            await choose(page, "zest (")
        await asked(page, f"I am number {number}", versions[voice], seconds=120)
        shown = await page.locator("#transcript").inner_text()
        other = versions["zest" if voice == "acme" else "acme"]
        assert f"I am number {number}" in shown
        assert not re.search(rf"I am number (?!{number}\b)", shown)
        assert other not in shown

    await asyncio.gather(*(story(number, page) for number, page in enumerate(opened)))
    assert len(await kept(pages)) == 10


async def test_a_key_is_asked_for_and_stays_out_of_the_address(pages: Pages) -> None:
    from polytone.serve.auth.keys import Kind

    acme = await pages.server.voice("acme", 1)
    header = pages.server.key(Kind.INFERENCE)
    page = await pages.open()
    await expect(page.get_by_text("This server needs a key.").first).to_be_visible(timeout=15_000)
    secret = header["authorization"].removeprefix("Bearer ")
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    await page.get_by_label("Key", exact=True).fill(secret)
    await page.get_by_label("Key", exact=True).press("Enter")
    await expect(field(page, "Voice")).to_have_value(re.compile("^acme"), timeout=15_000)
    await asked(page, "Hello", acme)
    await page.get_by_role("tab", name="Voices").click()
    await expect(page.get_by_text("This server needs a key.").last).to_be_visible(timeout=15_000)
    manager = pages.server.key(Kind.ADMIN)["authorization"].removeprefix("Bearer ")
    await page.get_by_label("Admin key").fill(manager)
    await page.get_by_label("Admin key").press("Enter")
    await expect(page.locator("#voices-overview")).to_contain_text(acme, timeout=15_000)
    assert not [url for url in requested if secret in url or manager in url]
    assert not [url for url in requested if not url.startswith((pages.url, "data:", "blob:"))]


async def test_the_pages_run_alone_against_a_server_elsewhere(pages: Pages) -> None:
    acme = await pages.server.voice("acme", 1)
    port = free_port()
    command = ["-m", "polytone", "ui", "--url", pages.url, "--port", str(port)]
    alone = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.DEVNULL)
    try:
        await asyncio.wait_for(answering(f"http://127.0.0.1:{port}/"), 60)
        page = await pages.browser.new_page()
        await page.goto(f"http://127.0.0.1:{port}/")
        await expect(field(page, "Voice")).to_have_value(re.compile("^acme"), timeout=15_000)
        await asked(page, "Where is my parcel?", acme)
    finally:
        alone.terminate()
        await alone.wait()
    assert len(await kept(pages)) == 1


async def answering(url: str) -> None:
    async with httpx.AsyncClient() as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(url)).status_code == 200:
                    return
            await asyncio.sleep(0.2)
