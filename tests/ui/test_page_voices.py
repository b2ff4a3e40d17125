"""The voices tab in a real browser: what it does is what the server's registry then says."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Locator, Page, expect

from polytone.contract.export import ExportReference
from polytone.contract.manifest import Data, DataSource
from polytone.serve.adapters.rollout import Part
from polytone.serve.auth.keys import Kind
from polytone.serve.database.audit import read_audit
from tests.serve.adapters.test_upload import Workshop, config, packed
from tests.serve.api.test_promotion import EMPTY, REPEATS, judged
from tests.support.adapters import change_manifest
from tests.support.pages import Pages, choose, needs_browser, serving_pages
from tests.support.serving import Server

pytestmark = [needs_browser, pytest.mark.slow]
TIMEOUT = 15_000


@pytest.fixture
async def pages(tmp_path: Path) -> AsyncIterator[Pages]:
    async with serving_pages(tmp_path / "server") as pages:
        yield pages


async def open_voices(pages: Pages, shows: str = "acme") -> Page:
    page = await pages.open()
    await page.get_by_role("tab", name="Voices").click(timeout=TIMEOUT)
    await expect(page.locator("#voices-overview")).to_contain_text(shows, timeout=TIMEOUT)
    return page


async def propose(page: Page, button: str) -> Locator:
    """Press a button that says what it would do; returns where it says so."""
    await page.get_by_role("button", name=button, exact=True).click()
    preview = page.locator(".confirmation .preview:visible")
    await expect(preview).to_be_visible()
    return preview


async def confirm(page: Page, done: str) -> None:
    await page.get_by_role("button", name="Confirm", exact=True).click()
    await expect(page.get_by_role("status").filter(has_text=done)).to_be_visible(timeout=TIMEOUT)


def answering(server: Server, voice: str = "acme") -> dict[str, int]:
    rollout = server.registry.desired().rollouts.get(voice)
    return {part.version: part.weight for part in rollout.parts} if rollout else {}


async def test_a_promotion_a_canary_and_the_way_back(pages: Pages) -> None:
    server = pages.server
    old, new = await server.voice("acme", 1), server.add("acme", 2)
    page = await open_voices(pages)
    panel, audit = page.locator("#voice-panel"), page.locator("#audit")
    await expect(panel).to_contain_text(f"acme: {old} 100 %")
    await choose(page, new, "Version")
    await expect(page.locator("#version-facts")).to_contain_text(new)

    preview = await propose(page, "Promote to 100 %")
    await expect(preview).to_contain_text(f"{new} will answer 100 % of acme. Now: {old} 100 %.")
    assert answering(server) == {old: 100}
    await page.get_by_role("button", name="Cancel").click()
    await expect(preview).to_be_hidden()
    assert answering(server) == {old: 100}

    await page.get_by_label("Canary share, in %").fill("25")
    await expect(await propose(page, "Start canary")).to_contain_text(f"{new} will answer 25 % of acme's conversations")
    await confirm(page, f"{new} now answers 25 %")
    assert answering(server) == {old: 75, new: 25}
    await expect(panel).to_contain_text(f"{old} 75 %, {new} 25 %")

    await propose(page, "Promote to 100 %")
    await confirm(page, f"{new} now answers 100 %")
    assert answering(server) == {new: 100}

    await expect(panel).to_contain_text(f"acme: {new} 100 %")
    await expect(await propose(page, "Roll back")).to_contain_text(f"Goes back to generation 1 of acme: {old} 100 %")
    await confirm(page, "acme went back")
    assert answering(server) == {old: 100}
    await expect(panel).to_contain_text("generation 4 of the rollout")
    await expect(audit).to_contain_text(f"rolled acme back: from {new} 100 % to {old} 100 %.")


async def test_a_version_is_retired_and_nobody_answers(pages: Pages) -> None:
    server = pages.server
    old, new = await server.voice("acme", 1), server.add("acme", 2)
    await server.until_ready(new)
    page = await open_voices(pages)
    await page.get_by_role("button", name="Retire version").click()
    await expect(page.get_by_role("alert")).to_contain_text(f"{old} answers for acme")
    await choose(page, new, "Version")
    await expect(page.get_by_role("alert")).to_have_count(0)
    await expect(await propose(page, "Retire version")).to_contain_text(f"Retires {new}")
    await confirm(page, f"{new} is retired")
    assert server.registry.desired().versions == {old}

    await expect(await propose(page, "Stop answering")).to_contain_text(f"Now: {old} 100 %")
    await confirm(page, "No version answers for acme now")
    assert answering(server) == {}
    await expect(page.locator("#voice-panel")).to_contain_text("No version answers for acme")
    await expect(page.locator("#audit")).to_contain_text("stopped answering for acme")


async def test_a_version_that_learned_from_feedback_says_so(pages: Pages) -> None:
    """The page took the number of answers for their list, and showed nothing of such a version at all."""
    export = ExportReference(sha256="0" * 64, format="sft", adapter="acme", completions=["chatcmpl-1", "chatcmpl-2"])
    source = DataSource(path="rows.jsonl", sha256="0" * 64, rows=2, assistant_tokens=10, export=export)
    await pages.server.voice("acme", 1, data=Data(train=source, held_out=source))
    page = await open_voices(pages)
    await expect(page.locator("#version-facts")).to_contain_text("an export of feedback (sft), 2 answers")


async def test_someone_who_was_slower_is_told_and_shown_how_it_is(pages: Pages) -> None:
    server = pages.server
    old, new = await server.voice("acme", 1), server.add("acme", 2)
    page = await open_voices(pages)
    for button in ("Promote to 100 %", "Stop answering"):
        await choose(page, new, "Version")
        await propose(page, button)
        faster = server.registry.roll_out("acme", [Part(old, 60 + len(button)), Part(new, 10)], "ada")
        await page.get_by_role("button", name="Confirm", exact=True).click()
        await expect(page.get_by_role("alert")).to_contain_text("someone else changed it first", timeout=TIMEOUT)
        await expect(page.locator("#voice-panel")).to_contain_text(f"generation {faster.generation} of the rollout")
        assert server.registry.history("acme")[0] == faster


async def test_failed_gates_are_shown_and_passed_over_by_force_only(pages: Pages) -> None:
    server = pages.server
    await server.voice("acme", 1)
    bad = server.add("acme", 2)
    judged(server.home, bad, REPEATS, EMPTY)
    page = await open_voices(pages)
    await choose(page, bad, "Version")
    facts = page.locator("#version-facts")
    await expect(facts).to_contain_text("not good enough")
    await expect(facts).to_contain_text(REPEATS.message)

    await propose(page, "Promote to 100 %")
    await page.get_by_role("button", name="Confirm", exact=True).click()
    refused = page.get_by_role("alert").filter(has_text="2 gates failed")
    await expect(refused.get_by_role("listitem")).to_have_text(
        [f"{bad}: {REPEATS.message}", f"{bad}: {EMPTY.message}"], timeout=TIMEOUT
    )
    assert bad not in answering(server)

    preview = await propose(page, "Promote anyway (forced; the audit log says so)")
    await expect(preview).to_contain_text("the audit log will say that you forced it")
    assert bad not in answering(server)
    await confirm(page, "It was forced")
    assert answering(server) == {bad: 100}
    assert read_audit(server.services.database, 1)[0].after["failed_gates"] == {bad: ["max_repetition", "max_empty"]}
    await expect(page.locator("#audit")).to_contain_text(f"by force: {bad} failed max_repetition, max_empty")


async def upload(page: Page, name: str, content: bytes) -> None:
    await page.get_by_label("Voice name").fill(name)
    file = {"name": "version.tar.gz", "mimeType": "application/gzip", "buffer": content}
    await page.locator("#upload input[type=file]").set_input_files(file)  # type: ignore[arg-type]
    await expect(page.locator("#upload").get_by_role("cell", name="version.tar.gz")).to_be_visible(timeout=TIMEOUT)
    preview = await propose(page, "Upload")
    await expect(preview).to_contain_text(f"publishes it as a version of {name}")
    await page.get_by_role("button", name="Confirm upload").click()


async def test_an_upload_is_refused_with_every_reason_or_published(pages: Pages, tmp_path: Path) -> None:
    server, shop = pages.server, Workshop(tmp_path / "shop")

    def broken(folder: Path) -> None:
        config(use_dora=True)(folder)
        change_manifest(folder, name="zest", chat_template_sha256="x" * 64)

    bad = shop.archive(broken)
    answer = await server.client.post("/admin/adapters/acme/versions", content=bad)
    reasons = [one["message"] for one in answer.json()["error"]["reasons"]]
    assert len(reasons) > 2

    page = await open_voices(pages, shows="No voice is published here yet")
    await page.get_by_role("button", name="Upload a version").click()
    await upload(page, "acme", bad)
    refused = page.get_by_role("alert").filter(has_text=f"refused for {len(reasons)} reasons")
    await expect(refused.get_by_role("listitem")).to_have_text(reasons, timeout=TIMEOUT)
    assert server.registry.desired().versions == frozenset()

    await upload(page, "acme", packed(shop.folder()))
    await expect(page.get_by_role("status").filter(has_text="is published")).to_be_visible(timeout=TIMEOUT)
    (version,) = server.registry.desired().versions
    await expect(page.locator("#voices-overview")).to_contain_text("no version answers")
    await expect(page.locator("#voice-panel")).to_contain_text(version)
    await expect(page.locator("#audit")).to_contain_text(f"published {version}")


async def test_a_key_is_asked_for_and_names_who_did_it(pages: Pages) -> None:
    server = pages.server
    await server.voice("acme", 1)
    new = server.add("acme", 2)
    secret = server.key(Kind.ADMIN, "ops")["authorization"].removeprefix("Bearer ")
    page = await open_voices(pages, shows="This server needs a key")
    await page.get_by_label("Admin key").fill(secret)
    await page.get_by_role("button", name="Refresh").locator("visible=true").click()
    await expect(page.locator("#voices-overview")).to_contain_text("acme", timeout=TIMEOUT)
    await choose(page, new, "Version")
    await propose(page, "Promote to 100 %")
    await confirm(page, "now answers 100 %")
    assert read_audit(server.services.database, 1)[0].actor == "key ops"
    await expect(page.locator("#audit").get_by_role("cell", name="key ops")).to_be_visible()


async def test_what_voices_say_of_themselves_is_text(pages: Pages) -> None:
    """A reason or a name that looks like HTML or a template is shown as it is."""
    server = pages.server
    version = await server.voice("acme", 1)
    bad = "<img src=x onerror=\"document.title='owned'\"> ${document.title='owned'} {{value}}"
    server.services.adapters._adapters[version].reason = bad
    page = await open_voices(pages)
    await expect(page.locator("#voice-panel")).to_contain_text("acme")
    judged(server.home, version, REPEATS.model_copy(update={"message": bad}))
    await page.get_by_role("button", name="Refresh").locator("visible=true").click()
    await expect(page.locator("#version-facts")).to_contain_text(bad, timeout=TIMEOUT)
    assert await page.title() != "owned"
    assert await page.locator("img[src=x]").count() == 0
