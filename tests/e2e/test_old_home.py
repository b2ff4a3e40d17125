"""A home made by an earlier Polytone opens with everything in it (tests/support/old_home)."""

import json
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from polytone.contract.adapter import list_versions, read_version
from polytone.contract.base import load_base
from polytone.contract.home import Home
from polytone.contract.manifest import Manifest
from polytone.contract.version_id import VersionId
from polytone.serve.adapters.registry import Registry
from polytone.serve.adapters.rollout import Part
from polytone.serve.auth.keys import Keyring, KeyStore, Kind
from polytone.serve.database.audit import read_audit
from polytone.serve.database.session import Database, open_database, reading
from polytone.serve.database.tables import AnswerRow, ReviewRow
from polytone.serve.engine.base import Body
from tests.support.fake_engine import FakeEngine
from tests.support.processes import served
from tests.support.serving import HELLO, Server, serving

FIXTURE = Path(__file__).parents[1] / "support" / "old_home"


@dataclass(frozen=True)
class OldHome:
    home: Home
    versions: tuple[str, str]
    keys: dict[str, str]
    answers: list[str]
    feedback: list[str]
    conversation: str

    def header(self, key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[key]}"}


@pytest.fixture
def old(tmp_path: Path) -> OldHome:
    with tarfile.open(FIXTURE / "home.tar.xz") as archive:
        archive.extractall(tmp_path / "home", filter="data")
    facts = json.loads((FIXTURE / "facts.json").read_text())
    return OldHome(Home(tmp_path / "home"), **{**facts, "versions": tuple(facts["versions"])})


class FaithfulEngine(FakeEngine):
    """Answers the probes of a version as its manifest says, so that they are verified without a real engine."""

    def __init__(self, base_id: str, manifests: dict[str, Manifest]) -> None:
        super().__init__(base_id)
        self._manifests = manifests

    async def complete(self, request: Body, version: str | None) -> Any:
        if version is None or not request.get("return_token_ids"):
            return await super().complete(request, version)
        probes = self._manifests[version].fingerprint.probes
        (probe,) = (probe for probe in probes if probe.prompt_tokens == request["prompt"])
        count = request["max_tokens"]
        logprobs = {"token_logprobs": probe.logprobs[:count], "top_logprobs": [{}] * count}
        return {"choices": [{"index": 0, "text": "", "token_ids": probe.tokens[:count], "logprobs": logprobs}]}


@pytest.fixture
async def server(old: OldHome) -> AsyncIterator[Server]:
    manifests = {version: read_version(old.home, version) for version in old.versions}
    base = load_base(old.home, "tiny")
    async with serving(old.home.root, base=base, engine=FaithfulEngine(base.id, manifests)) as server:
        await server.until_ready(*old.versions)
        yield server


@pytest.fixture
def database(old: OldHome) -> Any:
    database = open_database(old.home.database_url)
    yield database
    database.dispose()


def test_versions_and_base_are_read(old: OldHome) -> None:
    assert set(list_versions(old.home)) == set(old.versions)
    base = load_base(old.home, "tiny")
    for version in old.versions:
        manifest = read_version(old.home, version)
        assert (manifest.base.digest, manifest.system_prompt, manifest.peft.rank) == (base.digest, "Answer as Acme.", 4)


def test_what_answered_is_what_answers_with_its_history(old: OldHome, database: Database) -> None:
    first, second = old.versions
    registry = Registry(database)
    assert registry.desired().versions == set(old.versions)
    assert registry.desired().rollouts["acme"].parts == (Part(second, 100),)
    canary = (Part(first, 90), Part(second, 10))
    assert [rollout.parts for rollout in registry.history("acme")] == [
        (Part(second, 100),),
        canary,
        (Part(first, 100),),
    ]
    actions = [entry.action for entry in reversed(read_audit(database, 100))]
    assert actions == ["publish", "publish", "promote", *["create_key"] * 3, "revoke_key", "rollout", "promote"]


def test_keys_open_what_they_opened(old: OldHome, database: Database) -> None:
    keyring = Keyring(KeyStore(database).with_hashes())
    operator = keyring.authenticate(f"Bearer {old.keys['operator']}", Kind.ADMIN)
    bot = keyring.authenticate(f"Bearer {old.keys['bot']}", Kind.INFERENCE)
    assert operator is not None
    assert bot is not None
    assert (bot.adapters, bot.requests_per_minute) == (frozenset({"acme"}), 600)
    assert {key.name: key.live() for key in KeyStore(database).all()} == {"operator": True, "bot": True, "left": False}


def test_answers_and_reviews_are_there(old: OldHome, database: Database) -> None:
    with reading(database) as session:
        answers = [session.get_one(AnswerRow, one) for one in old.answers]
        assert [(one.voice, one.version, one.conversation) for one in answers] == [
            ("acme", old.versions[0], "order-1"),
            ("acme", old.versions[0], "order-1"),
            ("acme", old.versions[1], None),
        ]
        assert answers[0].prompt[-1]["content"] == "Where is my order?"
        review = session.get_one(ReviewRow, old.answers[0])
        assert (review.voice, review.reason, review.state) == ("acme", "thumbs_down", "open")


async def test_feedback_and_conversations_are_listed_exported_and_added_to(old: OldHome, server: Server) -> None:
    bot, operator = old.header("bot"), old.header("operator")
    listed = (await server.client.get("/v1/feedback", params={"adapter": "acme"}, headers=bot)).json()["feedback"]
    assert {one["id"] for one in listed} == set(old.feedback)
    export = {"format": "sft", "adapter": "acme"}
    parts = [
        (await server.client.get("/admin/feedback/export", params={**export, "split": split}, headers=operator)).text
        for split in ("train", "held_out")
    ]
    assert "It is on its way." in "".join(parts)
    kept = (await server.client.get(f"/v1/conversations/{old.conversation}", headers=bot)).json()
    assert [turn["content"] for turn in kept["turns"]] == ["Do you deliver on Sundays?", "No."]
    thumb = {"completion_id": old.answers[2], "key": "thumb", "value": "down"}
    assert (await server.client.post("/v1/feedback", json=thumb, headers=bot)).status_code == 201


async def test_its_voice_answers_and_its_version_is_described(old: OldHome, server: Server) -> None:
    answer = await server.chat("acme", old.header("bot"))
    assert (answer.status_code, answer.json()["model"]) == (200, old.versions[1])
    assert (await server.chat("acme", old.header("left"))).json()["error"]["code"] == "key_invalid"
    one = VersionId.parse(old.versions[0])
    path = f"/admin/adapters/{one.voice}/versions/{one.digest}"
    described = (await server.client.get(path, headers=old.header("operator"))).json()
    assert (described["state"], described["manifest"]["rank"]) == ("ready", 4)


@pytest.mark.engine
def test_a_real_engine_verifies_its_fingerprints(old: OldHome, tmp_path: Path) -> None:
    with served(old.home.root, tmp_path / "server.log", POLYTONE_BASE="tiny", POLYTONE_PAGE="false") as server:
        server.until_ready()
        for version in ("acme", old.versions[0]):
            body = {"model": version, "messages": HELLO, "max_tokens": 8}
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=old.header("bot"), timeout=60)
            assert answer.status_code == 200, answer.text
        listed = httpx.get(f"{server.url}/admin/adapters", headers=old.header("operator")).json()["adapters"]
        assert {one["version"]: one["state"] for one in listed[0]["versions"]} == dict.fromkeys(old.versions, "ready")
