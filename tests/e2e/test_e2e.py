"""The whole way on the real small model: prepare, train a few steps, publish, serve, chat through the openai client."""

import asyncio
import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from openai import APIStatusError, AsyncOpenAI, OpenAI
from playwright.async_api import Page, expect

from bench.running import ServerProcess, free_port
from polytone.contract.adapter import read_version
from polytone.contract.home import Home
from polytone.contract.manifest import Manifest
from tests.soak.marked import restamped
from tests.support.dashboards import problems, queries
from tests.support.pages import ask, asked, browsing, choose, field, needs_browser
from tests.support.processes import polytone, served
from tests.support.prometheus import needs_prometheus, scraping
from tests.ui.test_page_voices import confirm, propose, upload

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

BASE = "smollm2-135m-instruct"
EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 6


@dataclass(frozen=True)
class Shop:
    """A home with the real base and two voices, and a server on it."""

    home: Home
    server: ServerProcess
    voices: dict[str, Manifest]

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.server.url}/v1", api_key="none", max_retries=0)


def train_voice(root: Path, home: Path, name: str, steps: int = STEPS, **settings: str) -> str:
    """Train an example voice on some of its rows for a few steps, through the command line; returns the version."""
    folder = root / name
    shutil.copytree(EXAMPLES / name, folder)
    for file, rows in (("train.jsonl", 48), ("held_out.jsonl", 4)):
        lines = (folder / file).read_text().splitlines(keepends=True)
        (folder / file).write_text("".join(lines[:rows]))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    training = {"max_steps": steps, "batch": 4, "micro_batch": 4, "learning_rate": 0.002, "evaluations": 0}
    return train_recipe(folder, home, {**recipe, "training": training}, **settings)


def train_recipe(folder: Path, home: Path, recipe: dict[str, Any], **settings: str) -> str:
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "drift": {"rows": 0}}))
    done = polytone("train", str(folder / "recipe.yaml"), "--json", home=home, **settings)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["version"])


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    root = tmp_path_factory.mktemp("shop")
    home = Home(root / "home")
    done = polytone("base", "prepare", home=home.root)
    assert done.returncode == 0, done.stderr
    names = ("aldermoor", "driftpepper")
    with ThreadPoolExecutor() as both:  # a thread each: together sooner than one after the other with two
        trained = both.map(lambda name: train_voice(root, home.root, name, OMP_NUM_THREADS="1"), names)
        versions = dict(zip(names, trained, strict=True))
    for version in versions.values():
        for step in ("publish", "promote"):
            done = polytone("adapters", step, version, home=home.root)
            assert done.returncode == 0, done.stderr
    with served(home.root, root / "server.log") as server:
        server.until_ready()
        yield Shop(home, server, {name: read_version(home, version) for name, version in versions.items()})


def test_preparing_the_base_again_is_instant_and_changes_nothing(shop: Shop) -> None:
    path = shop.home.bases / BASE / "base.json"
    before = path.stat()
    done = polytone("base", "prepare", "--json", home=shop.home.root)
    assert json.loads(done.stdout)["id"] == BASE
    assert path.stat() == before


def test_the_client_lists_base_and_voices_with_their_versions(shop: Shop) -> None:
    cards = {card.id: card.model_dump() for card in shop.client().models.list()}
    assert set(cards) == {BASE, *shop.voices}
    for name, manifest in shop.voices.items():
        assert (cards[name]["version"], cards[name]["parent"]) == (manifest.version, BASE)


def test_served_equals_trained_token_by_token(shop: Shop) -> None:
    """The greedy tokens of every fingerprint prompt through the API are the trainer's."""
    for manifest in shop.voices.values():
        for probe in manifest.fingerprint.probes:
            answer = shop.client().chat.completions.create(
                model=manifest.version,
                messages=probe.messages,
                temperature=0,
                max_tokens=len(probe.tokens),
                extra_body={"return_token_ids": True},
            )
            assert answer.model_extra["prompt_token_ids"] == probe.prompt_tokens
            assert answer.choices[0].model_extra["token_ids"] == probe.tokens


def test_the_client_chats_pins_streams_and_gets_json(shop: Shop) -> None:
    client = shop.client()
    version = shop.voices["aldermoor"].version
    question: list[Any] = [{"role": "user", "content": "My card was charged twice."}]
    for model, exact in ((BASE, BASE), ("aldermoor", version), (version, version)):
        answer = client.chat.completions.create(model=model, messages=question, max_tokens=20)
        assert answer.model == exact
        assert answer.choices[0].message.content
    with client.chat.completions.create(model="aldermoor", messages=question, max_tokens=20, stream=True) as stream:
        assert {chunk.model for chunk in stream} == {version}
    schema = {
        "type": "object",
        "properties": {"topic": {"type": "string", "maxLength": 20}, "urgent": {"type": "boolean"}},
        "required": ["topic", "urgent"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="driftpepper",
        messages=question,
        max_tokens=120,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "ticket", "schema": schema, "strict": True}},
    )
    assert set(json.loads(answer.choices[0].message.content or "")) == {"topic", "urgent"}


@pytest.fixture
async def client(shop: Shop) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{shop.server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


async def test_sixteen_streams_over_base_and_both_voices_all_finish_in_their_own_voice(
    shop: Shop, client: AsyncOpenAI
) -> None:
    """Greedy answers of a mixed batch are those each voice gives alone."""
    question: list[Any] = [{"role": "user", "content": "My order has not arrived."}]

    async def stream(model: str) -> tuple[set[str], str, str | None]:
        models, text, reason = set(), "", None
        async for chunk in await client.chat.completions.create(
            model=model, messages=question, max_tokens=24, temperature=0, stream=True
        ):
            models.add(chunk.model)
            text += chunk.choices[0].delta.content or ""
            reason = chunk.choices[0].finish_reason or reason
        return models, text, reason

    names = [BASE, *shop.voices]
    exact = {BASE: BASE, **{name: manifest.version for name, manifest in shop.voices.items()}}
    alone = {name: (await stream(name))[1] for name in names}
    asked = [names[index % 3] for index in range(16)]
    for name, (models, text, reason) in zip(asked, await asyncio.gather(*map(stream, asked)), strict=True):
        assert models == {exact[name]}
        assert text == alone[name]
        assert reason in {"stop", "length"}
    assert len(set(alone.values())) == 3


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"model": "nobody"}, 404),
        ({"temperature": -1}, 400),
        ({"max_tokens": 0}, 400),
        ({"messages": []}, 400),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, 400),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
            400,
        ),
    ],
)
def test_bad_requests_are_refused_in_openais_envelope(shop: Shop, change: dict[str, Any], status: int) -> None:
    body: dict[str, Any] = {"model": "aldermoor", "messages": [{"role": "user", "content": "Hi"}], **change}
    for stream in (False, True):
        with pytest.raises(APIStatusError) as caught:
            shop.client().chat.completions.create(**body, stream=stream)
        assert caught.value.status_code == status, caught.value
        assert caught.value.body["code"]


def test_the_readmes_code_runs(shop: Shop) -> None:
    """Its curl line and its Python, as they stand there but for the port."""
    readme = (EXAMPLES.parent / "README.md").read_text().replace("http://127.0.0.1:8000", shop.server.url)
    curl = re.search(r"```bash\n(curl .*?)```", readme, re.DOTALL)
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert curl
    assert code
    done = subprocess.run(["bash", "-c", curl[1]], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["model"] == shop.voices["driftpepper"].version
    done = subprocess.run([sys.executable, "-c", code[1]], capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line.startswith(f"{shop.voices['aldermoor'].version}: ")]


def test_a_voice_answers_in_the_terminal(shop: Shop) -> None:
    words = ("chat", "driftpepper", "--message", "My order is late.", "--url", shop.server.url)
    done = polytone(*words, home=shop.home.root)
    assert (done.returncode, done.stderr) == (0, f"[{shop.voices['driftpepper'].version}]\n")
    assert done.stdout.strip()


def test_metrics_name_versions_and_the_engines_own_stand_beside_them(shop: Shop) -> None:
    text = httpx.get(f"{shop.server.url}/metrics").text
    assert f"polytone_adapters_resident {len(shop.voices)}.0" in text
    assert re.search(
        r'polytone_requests_total\{adapter="aldermoor",status="200",version="aldermoor@[0-9a-f]{12}"\}', text
    )
    assert "vllm:num_requests_running" in text


@needs_prometheus
async def test_the_dashboards_ask_the_real_engine_for_what_it_counts(shop: Shop, tmp_path: Path) -> None:
    """vLLM's own metrics; the double has none of them."""
    own = [query for query in queries() if query.engines_own]
    async with scraping(tmp_path / "prometheus", int(shop.server.url.rpartition(":")[2])) as prometheus:
        assert not await prometheus.unanswered(query.filled for query in own)
        there = await prometheus.labels_by_metric()
    assert not [problem for query in own for problem in problems(query, there)]
    assert len(own) > 10
    assert "vllm:lora_requests_info" not in there


def test_the_chat_page_is_served_and_fetches_nothing_from_outside(shop: Shop) -> None:
    deadline = time.monotonic() + 60
    while (page := httpx.get(f"{shop.server.url}/", follow_redirects=True)).status_code == 503:
        assert "being prepared" in page.text
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert page.status_code == 200
    assert "Polytone" in page.text
    assert "fonts.googleapis.com" not in page.text


async def test_a_third_voice_arrives_while_streams_run(shop: Shop, client: AsyncOpenAI, tmp_path: Path) -> None:
    question: list[Any] = [{"role": "user", "content": "Hello!"}]
    stopped = asyncio.Event()
    finished: list[str] = []

    async def keep_streaming(model: str) -> None:
        while not stopped.is_set():
            async for chunk in await client.chat.completions.create(
                model=model, messages=question, max_tokens=24, stream=True
            ):
                reason = chunk.choices[0].finish_reason
            assert reason in {"stop", "length"}
            finished.append(model)

    streams = [asyncio.create_task(keep_streaming(model)) for model in (BASE, *shop.voices, BASE)]
    # As many threads as cores would wait for each other, with the engine's beside them.
    version = await asyncio.to_thread(train_voice, tmp_path, shop.home.root, "mosswick", 2, OMP_NUM_THREADS="1")
    for step in ("publish", "promote"):
        done = await asyncio.to_thread(polytone, "adapters", step, version, home=shop.home.root)
        assert done.returncode == 0, done.stderr
    answer = await client.chat.completions.create(model="mosswick", messages=question, max_tokens=8)
    assert answer.model == version
    stopped.set()
    await asyncio.gather(*streams)
    assert len(finished) >= 4
    done = await asyncio.to_thread(polytone, "adapters", "retire", "mosswick", home=shop.home.root)
    assert done.returncode == 0, done.stderr


def test_what_people_say_becomes_the_next_version_and_leads_back_to_them(shop: Shop, tmp_path: Path) -> None:
    """Conversations, thumbs and corrections -> export -> SFT, then KTO, each from the version before -> evaluation."""
    parent = shop.voices["aldermoor"].version
    corrected, judged = set[str](), set[str]()
    for number in range(12):
        question: list[Any] = [{"role": "user", "content": f"Where is order {number}?"}]
        answer = shop.client().chat.completions.create(model="aldermoor", messages=question, max_tokens=12)
        say = {"completion_id": answer.id, "annotator": {"id": "kim"}}
        thumb = {**say, "key": "thumb", "value": "down" if number % 2 else "up"}
        said = [httpx.post(f"{shop.server.url}/v1/feedback", json=thumb)]
        judged.add(answer.id)
        if number % 2:
            correction = {**say, "key": "correction", "text": f"Order {number} left our bank today."}
            said.append(httpx.post(f"{shop.server.url}/v1/feedback", json=correction))
            corrected.add(answer.id)
        assert [one.status_code for one in said] == [201] * len(said)
    for kind in ("sft", "kto"):
        export = ("feedback", "export", "--adapter", "aldermoor", "--format", kind, "--out", str(tmp_path))
        done = polytone(*export, home=shop.home.root)
        assert done.returncode == 0, done.stderr
    held_out = (EXAMPLES / "aldermoor" / "held_out.jsonl").read_text().splitlines(keepends=True)[:4]
    (tmp_path / "held_out.jsonl").write_text("".join(held_out))

    def next_version(kind: str, parent: str, **training: Any) -> Manifest:
        recipe = {
            "name": "aldermoor",
            "parent": parent,
            "data": {"train": f"aldermoor-{kind}-train.jsonl", "held_out": "held_out.jsonl"},
            "training": {"method": kind, "max_steps": 1, "batch": 2, "micro_batch": 2, "evaluations": 0, **training},
        }
        return read_version(shop.home, train_recipe(tmp_path, shop.home.root, recipe))

    better = next_version("sft", parent, learning_rate=0.001)
    liked = next_version("kto", better.version)
    for manifest, earlier, answers in ((better, parent, corrected), (liked, better.version, judged)):
        export_of = manifest.data.train.export
        assert manifest.parent == earlier
        assert export_of is not None
        assert set(export_of.completions) <= answers
        assert export_of.completions
        assert manifest.evaluation.parent_loss is not None
    assert len({parent, better.version, liked.version}) == 3
    measure = ("evaluate", liked.version, "--data", str(tmp_path / "held_out.jsonl"), "--replies", "2", "--json")
    done = polytone(*measure, home=shop.home.root)
    found = json.loads(done.stdout)
    assert found["parent_loss"] == pytest.approx(better.evaluation.adapter_loss, abs=1e-3)


@needs_browser
async def test_a_day_of_a_tester_on_the_page(shop: Shop) -> None:
    """Chat, stop, change voices, correct an answer, vote blind on ten prompts, and see the engine die and come back."""
    versions = {name: manifest.version for name, manifest in shop.voices.items()}
    async with browsing() as browser:
        page = await browser.new_page()
        await page.goto(f"{shop.server.url}/ui/")
        await expect(field(page, "Voice")).to_have_value(re.compile("^aldermoor"), timeout=60_000)
        await page.get_by_role("button", name="Settings").click()
        longest = page.get_by_label("Longest answer, in tokens").locator("visible=true")
        await longest.fill("300")
        await ask(page, "Tell me everything about your shop, at length.")
        await page.locator("#message .stop-button").click(timeout=60_000)
        await expect(page.locator("#transcript").get_by_role("button", name=re.compile("stopped$"))).to_be_visible()

        await longest.fill("12")
        await choose(page, "driftpepper (")
        await asked(page, "My order is late.", versions["driftpepper"])
        await page.get_by_label("Bad", exact=True).check()
        await page.get_by_label("off tone").check()
        await page.get_by_role("button", name="Send feedback").click()
        await expect(page.get_by_text("Your feedback is saved.")).to_be_visible()
        await page.get_by_role("button", name="Correct this answer").click()
        await field(page, "Corrected answer").fill("It left us this morning!")
        await page.get_by_role("button", name="Save correction").click()
        await expect(page.get_by_text("Your correction is saved.")).to_be_visible()

        await vote_blind(page, 10)

        await page.get_by_role("tab", name="Chat").click()
        await longest.fill("300")
        await ask(page, "And everything about your parcels.")
        await expect(page.locator("#message .stop-button")).to_be_visible(timeout=60_000)
        engine_of(shop.server).kill()
        await expect(page.get_by_text(re.compile("Interrupted: |No answer: ")).first).to_be_visible(timeout=60_000)
        shop.server.until_ready()
        await longest.fill("12")
        await asked(page, "My order is late.", versions["driftpepper"])
    check_what_was_kept(f"{shop.server.url}/v1", versions["driftpepper"])


def check_what_was_kept(api: str, version: str) -> None:
    """The thumb, its reason and the correction are about the version's first answer; ten votes were blind."""
    kept = httpx.get(f"{api}/conversations").json()["conversations"][0]
    turns = httpx.get(f"{api}/conversations/{kept['id']}").json()["turns"]
    corrected = next(turn for turn in turns if turn["details"].get("version") == version)
    given = [one for one in httpx.get(f"{api}/feedback").json()["feedback"] if one["annotator"]["id"] == "tester"]
    about = [(one["key"], one["value"], one["completion_id"]) for one in given if one["key"] != "preference"]
    assert about[:2] == [(k, v, corrected["completion_id"]) for k, v in (("thumb", "down"), ("tag", "off tone"))]
    assert about[2:] == [("correction", None, corrected["completion_id"])]
    assert [(one["pair"]["blind"], one["value"]) for one in given if one["key"] == "preference"] == [(True, "tie")] * 10


async def vote_blind(page: Page, prompts: int) -> None:
    """Work through a set of prompts, and call every one a tie by its key."""
    await page.get_by_role("tab", name="Compare").click()
    await expect(page.locator(".token")).to_have_count(2, timeout=30_000)
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_label("Longest answer, in tokens").locator("visible=true").fill("6")
    await page.get_by_role("button", name="A set of prompts").click()
    await page.get_by_label("Prompts, one per line").fill("\n".join(f"Question {number}?" for number in range(prompts)))
    await page.get_by_role("button", name="Start with the first prompt").click()
    for number in range(prompts):
        await expect(page.get_by_label("Prompt", exact=True)).to_have_value(f"Question {number}?", timeout=30_000)
        await expect(page.locator("#vote-tie")).to_be_visible(timeout=60_000)
        await page.locator("#sides h2").first.click()  # out of any text box
        await page.keyboard.press("t")
    await expect(page.get_by_text(f"All {prompts} prompts are done.")).to_be_visible(timeout=30_000)


@needs_browser
async def test_a_day_of_an_operator_on_the_page(shop: Shop) -> None:
    """Review what someone did not like, see an upload refused, promote another version and roll it back."""
    old = shop.voices["driftpepper"]
    new = restamped(shop.home, old, 1).version
    nothing_waits(shop)
    bad = dislike(shop, "driftpepper")
    assert polytone("adapters", "publish", new, home=shop.home.root).returncode == 0
    async with browsing() as browser:
        page = await browser.new_page()
        await page.goto(f"{shop.server.url}/ui/")
        await page.get_by_role("tab", name="Review").click(timeout=60_000)
        await page.get_by_label("Your name").fill("Robin")
        await page.get_by_role("button", name="Next answer").click()
        await expect(page.locator("#review-asked").get_by_text("How much is the blue one?")).to_be_visible(
            timeout=30_000
        )
        await page.get_by_role("button", name="Correct it").click()
        await page.locator("#review-text textarea").fill("It is nine pounds.")
        await page.get_by_role("button", name="Save the correction").click()
        await expect(page.locator("#review-item")).to_be_hidden(timeout=30_000)

        await page.get_by_role("tab", name="Voices").click()
        await page.get_by_role("button", name="Upload a version").click(timeout=30_000)
        await upload(page, "driftpepper", b"no archive at all")
        await expect(page.get_by_role("alert").filter(has_text="archive")).to_be_visible(timeout=30_000)
        await choose(page, "driftpepper", "Voice")
        await choose(page, new, "Version")
        for button, done in (("Promote to 100 %", f"{new} now answers 100 %"), ("Roll back", "driftpepper went back")):
            await propose(page, button)
            await confirm(page, done)
        await expect(page.locator("#voice-panel")).to_contain_text(f"driftpepper: {old.version} 100 %", timeout=30_000)
    corrections = fetched(f"{shop.server.url}/v1/feedback?adapter=driftpepper")["feedback"]
    assert [one["text"] for one in corrections if one["completion_id"] == bad][-1] == "It is nine pounds."
    card = fetched(f"{shop.server.url}/v1/models/driftpepper")
    assert card["version"] == old.version
    assert polytone("adapters", "retire", new, home=shop.home.root).returncode == 0


def nothing_waits(shop: Shop) -> None:
    """Accept what others in this shop left for review."""
    reviews = f"{shop.server.url}/admin/reviews"
    while (item := httpx.post(f"{reviews}/next", json={"reviewer": "Robin"}).json()["item"]) is not None:
        decided = httpx.post(f"{reviews}/{item['completion_id']}", json={"reviewer": "Robin", "decision": "accept"})
        assert decided.status_code == 200


def dislike(shop: Shop, voice: str) -> str:
    """Give an answer of the voice a thumb down; its completion id."""
    question: Any = [{"role": "user", "content": "How much is the blue one?"}]
    answer = shop.client().chat.completions.create(model=voice, messages=question, max_tokens=8)
    body = {"key": "thumb", "value": "down", "completion_id": answer.id, "annotator": {"id": "robin"}}
    assert httpx.post(f"{shop.server.url}/v1/feedback", json=body).status_code == 201
    return str(answer.id)


def fetched(url: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(url).json()
    return answer


def engine_of(server: ServerProcess) -> psutil.Process:
    return next(child for child in server.children() if "EngineCore" in " ".join(child.cmdline()) + child.name())


def test_a_second_server_on_the_port_is_refused_with_the_fix(shop: Shop) -> None:
    port = shop.server.url.rpartition(":")[2]
    done = polytone("serve", "--port", port, home=shop.home.root)
    assert done.returncode == 2
    assert f"polytone serve --port {int(port) + 1}" in done.stderr


def left_behind(children: list[psutil.Process]) -> list[psutil.Process]:
    """Python's own resource tracker ends a moment after the server, when it notices; nothing else is left to end."""
    deadline = time.monotonic() + 10
    while alive := [child for child in children if is_alive(child)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return alive


def is_alive(process: psutil.Process) -> bool:
    """A zombie is not: it waits for a parent that does not ask."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_cleanly_even_while_it_starts(shop: Shop, tmp_path: Path, number: int) -> None:
    with served(shop.home.root, tmp_path / "log") as server:
        while len(server.children()) < 1:
            assert server.popen.poll() is None
        children = server.children()
        assert server.stop(number) == 0, server.log.read_text()
        assert not left_behind(children)


def test_zz_a_signal_ends_a_serving_server_and_its_engine(shop: Shop) -> None:
    children = shop.server.children()
    assert children
    assert shop.server.stop(signal.SIGTERM) == 0, shop.server.log.read_text()[-3000:]
    assert not left_behind(children)
    assert free_port()
