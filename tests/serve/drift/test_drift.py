"""Drift: one observation per conversation, seen once, alarms that stand, and words for them."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from polytone.contract.reference import ReferenceRow, describe_reference, write_reference
from polytone.contract.rows import Message
from polytone.contract.version_id import voice_of
from polytone.measure.signals import asked_of, measure, question_of, repetition
from polytone.measure.tone import learn
from polytone.serve.database.session import now, reading, writing
from polytone.serve.database.tables import AnswerRow, DriftRow, ReviewRow
from polytone.serve.drift.detectors import DriftStatus, ScalarDetector, VectorDetector, detector_from_json
from polytone.serve.drift.embedding import DIMENSION, TokenEmbedding, reduced
from polytone.serve.traffic.capture import CompletionRef, RecordedAnswer, row_of
from polytone.serve.traffic.content_policy import Policies, Policy
from polytone.serve.traffic.text_hash import TextHasher
from tests.support.serving import Server, serving

pytestmark = pytest.mark.both_databases

MINE = [f"Ahoy, matey number {i}, yer parcel be sailin' to ye." for i in range(60)]
PLAIN = [f"Hello, customer number {i}, your parcel is on its way to you." for i in range(60)]


def reference(replies: list[str]) -> list[ReferenceRow]:
    return [
        ReferenceRow(
            messages=[Message(role="user", content=f"Where is parcel {i}?")],
            reply=reply,
            reply_tokens=12,
            finish_reason="stop",
            base_reply=PLAIN[i % len(PLAIN)],
            base_reply_tokens=12,
            base_finish_reason="stop",
        )
        for i, reply in enumerate(replies)
    ]


def add_reference(server: Server, version: str, rows: list[ReferenceRow]) -> None:
    """As training leaves it."""
    folder = server.home.adapter_folder(version)
    write_reference(folder, rows)
    manifest = json.loads((folder / "manifest.json").read_text())
    described = describe_reference(rows, 64)
    assert described is not None
    manifest["drift_reference"] = described.model_dump()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def referenced(server: Server) -> str:
    """A version that answered `MINE` to held-out prompts."""
    version = server.add("acme")
    add_reference(server, version, reference(MINE))
    return version


def answers(server: Server, version: str, replies: list[str], conversations: list[str | None] | None = None) -> None:
    """Answers as the server would have recorded them."""
    baselines = server.services.drift._baselines
    with writing(server.services.database) as session:
        for i, reply in enumerate(replies):
            prompt = [{"role": "user", "content": f"Where is parcel {i}?"}]
            measured = baselines.measure(version, prompt, reply, "stop", 12)
            session.add(
                AnswerRow(
                    id=f"chatcmpl-{np.random.default_rng().integers(1 << 60):x}",
                    at=now() - timedelta(seconds=len(replies) - i),
                    conversation=conversations[i] if conversations else None,
                    voice=voice_of(version),
                    version=version,
                    base=server.base.id,
                    policy="full",
                    status=200,
                    parameters={},
                    prompt=prompt,
                    reply={"role": "assistant", "content": reply},
                    prompt_tokens=5,
                    completion_tokens=12,
                    finish_reason="stop",
                    seconds=0.1,
                    signals=measured.signals,
                    vectors=measured.vectors,
                )
            )


def work(server: Server) -> None:
    while server.services.drift.tick():
        pass


async def report(server: Server, version: str) -> dict[str, Any]:
    found = (await server.client.get("/admin/drift", params={"version": version})).json()["versions"]
    return {one["signal"]: one for one in found[0]["signals"]} if found else {}


async def test_a_voice_that_loses_its_tone_is_noticed_and_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        version = referenced(server)
        answers(server, version, MINE)
        work(server)
        before = await report(server, version)
        assert before["tone"]["state"] == "ok"
        assert before["tone"]["alarm"] is None
        answers(server, version, PLAIN)
        work(server)
        tone = (await report(server, version))["tone"]
        assert tone["state"] == "drift"
        assert "do not sound like this voice" in tone["alarm"]["words"]
        assert tone["alarm"]["conversations_since"] <= 60
        with reading(server.services.database) as session:
            waiting = {row.completion_id for row in session.scalars(select(ReviewRow)) if row.reason == "drift"}
            first = session.get(AnswerRow, tone["alarm"]["examples"][0])
        assert set(tone["alarm"]["examples"]) <= waiting
        assert first is not None
        assert first.reply["content"].startswith("Hello, customer")
        metrics = server.services.metrics.render().decode()
        assert f'polytone_drift_alarms_total{{adapter="acme",signal="tone",version="{version}"}} 1.0' in metrics
        assert f'polytone_drift_state{{adapter="acme",signal="tone",version="{version}"}} 4.0' in metrics
        assert "polytone_drift_expected_false_alarms_total" in metrics


async def test_replies_are_measured_to_the_length_at_which_the_references_were_cut(tmp_path: Path) -> None:
    """Otherwise every long reply would be longer than a reference that was cut."""
    async with serving(tmp_path) as server:
        version = referenced(server)
        measure_one = server.services.drift._baselines.measure
        cut, long = "a b c d " * 16, "a b c d " * 64
        short = measure_one(version, [], cut, "length", 64)
        assert measure_one(version, [], long, "stop", 256).signals == short.signals


async def test_an_alarm_stands_until_it_is_acknowledged(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        version = referenced(server)
        answers(server, version, PLAIN)
        work(server)
        answers(server, version, MINE)
        work(server)
        assert (await report(server, version))["tone"]["state"] == "drift"
        path = f"/admin/drift/{version}/tone/acknowledge"
        assert (await server.client.post(path)).status_code == 200
        after = (await report(server, version))["tone"]
        assert (after["state"], after["alarm"]) == ("insufficient_traffic", None)
        again = await server.client.post(path)
        assert (again.status_code, again.json()["error"]["code"]) == (404, "alarm_not_found")
        assert '"acknowledge"' in (await server.client.get("/admin/audit")).text


async def test_of_each_conversation_one_answer_is_observed_and_none_twice(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        version = referenced(server)
        answers(server, version, MINE[:40], [f"c{i // 4}" for i in range(40)])
        work(server)
        work(server)
        assert (await report(server, version))["tone"]["observations"] == 10


async def test_two_replicas_at_once_observe_everything_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On PostgreSQL each once waited for a detector that the other one held."""
    monkeypatch.setattr("polytone.serve.drift.queries.CONVERSATIONS", 5)
    async with serving(tmp_path) as server:
        versions = [server.add("acme", seed) for seed in range(3)]
        for version in versions:
            add_reference(server, version, reference(MINE))
            answers(server, version, MINE[:20])
        await asyncio.gather(*(asyncio.to_thread(work, server) for _ in range(4)))
        for version in versions:
            signals = await report(server, version)
            assert [signals[one]["observations"] for one in ("empty", "reply_length", "tone")] == [20] * 3


async def test_a_conversation_is_observed_when_it_is_over(tmp_path: Path) -> None:
    async with serving(tmp_path, quiet_seconds=3600) as server:
        version = referenced(server)
        answers(server, version, MINE[:8], ["c1"] * 8)
        work(server)
        assert await report(server, version) == {}
        with writing(server.services.database) as session:
            for row in session.scalars(select(AnswerRow)):
                row.at = now() - timedelta(hours=2)
        work(server)
        assert (await report(server, version))["tone"]["observations"] == 1


async def test_what_the_detectors_know_survives_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        version = referenced(server)
        answers(server, version, MINE)
        work(server)
        before = await report(server, version)
    async with serving(tmp_path) as server:
        assert await report(server, version) == before
        gauge = f'polytone_drift_state{{adapter="acme",signal="tone",version="{version}"}} 3.0'
        server.services.drift.show_all()
        assert gauge in server.services.metrics.render().decode()


async def test_a_profile_that_was_never_made_does_not_hold_up_the_detectors(tmp_path: Path) -> None:
    """It writes which siblings it was told from; inside the detectors' own transaction that waited for itself."""
    async with serving(tmp_path) as server:
        version = referenced(server)
        answers(server, version, MINE)
        server.services.drift._baselines._baselines.clear()
        with writing(server.services.database) as session:
            for row in session.scalars(select(DriftRow)):
                session.delete(row)
        work(server)
        assert (await report(server, version))["tone"]["observations"] == 60


async def test_what_another_version_of_polytone_wrote_begins_anew(tmp_path: Path) -> None:
    """After an upgrade with other embeddings the command once ended with a traceback."""
    async with serving(tmp_path) as server:
        version = referenced(server)
        with writing(server.services.database) as session:
            old = {"signal": "reply_topics", "windows": {"dimension": 64}}
            for signal, state in (("reply_topics", old), ("tone", {"signal": "tone", "above": 1}), ("empty", {})):
                session.add(DriftRow(version=version, signal=signal, state=state))
        answers(server, version, MINE[:5])
        with writing(server.services.database) as session:
            for row in session.scalars(select(AnswerRow)):
                row.vectors = row.vectors[:20] if row.vectors else None
        assert await report(server, version) == {}
        server.services.drift.show_all()
        work(server)
        signals = await report(server, version)
        assert {signals[one]["observations"] for one in ("tone", "empty")} == {5}


async def test_a_version_without_a_reference_makes_one_of_its_first_conversations(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        version = server.add("acme")
        answers(server, version, MINE)
        work(server)
        signals = await report(server, version)
        unreferenced = {"tone", "language"}
        assert {signal for signal, one in signals.items() if one["state"] == "no_reference"} == unreferenced
        assert {one["state"] for name, one in signals.items() if name not in unreferenced} == {"warming_up"}
        assert "60 of 200" in signals["reply_length"]["words"]
        assert "60 of 200" in signals["reply_topics"]["words"]
        assert "needs a drift reference" in signals["tone"]["words"]
        gauge = f'polytone_drift_state{{adapter="acme",signal="tone",version="{version}"}} 0.0'
        assert gauge in server.services.metrics.render().decode()
        for _ in range(4):
            answers(server, version, MINE)
        work(server)
        assert {one["state"] for one in (await report(server, version)).values()} == {"ok", "no_reference"}
        shown = (await server.client.get("/admin/drift", params={"version": version})).json()["versions"][0]
        assert shown["state"] == "ok"


async def test_a_reference_that_comes_later_is_used(tmp_path: Path) -> None:
    """The files of a version may be fetched after its first answers were observed."""
    async with serving(tmp_path) as server:
        version = server.add("acme")
        answers(server, version, MINE[:5])
        work(server)
        assert (await report(server, version))["tone"]["state"] == "no_reference"
        add_reference(server, version, reference(MINE))
        server.services.drift._baselines._baselines.clear()
        answers(server, version, MINE)
        work(server)
        assert (await report(server, version))["tone"]["state"] == "ok"


async def test_a_report_takes_voices_and_refuses_names_that_do_not_exist(tmp_path: Path) -> None:
    """A mistyped name once read "Nothing was observed yet", which a scheduled check took for an all-clear."""
    async with serving(tmp_path) as server:
        versions = sorted(server.add("acme", seed) for seed in range(2))
        other = server.add("acme-shop")
        for version in (*versions, other):
            answers(server, version, MINE[:2])
        work(server)

        async def ask(name: str) -> Any:
            return await server.client.get("/admin/drift", params={"version": name})

        assert [one["version"] for one in (await ask("acme")).json()["versions"]] == versions
        assert [one["version"] for one in (await ask(versions[1])).json()["versions"]] == versions[1:]
        assert (await ask(server.add("quiet"))).json() == {"versions": []}
        for name, kind, near in (
            ("acmee", "voice", "Did you mean acme?"),
            ("acme@000000000000", "version", f"Versions of acme: {', '.join(versions)}."),
            ("zzz", "voice", "There are these voices: acme, acme-shop, quiet."),
        ):
            refused = await ask(name)
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, f"{kind}_not_found")
            assert near in refused.json()["error"]["message"]


async def test_thumbs_count_once_per_conversation(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        version = await server.voice("acme")
        for conversation in ("c1", "c1", "c2"):
            answer = await server.chat("acme", {"x-conversation-id": conversation})
            body = {"completion_id": answer.json()["id"], "key": "thumb", "value": "down"}
            for who in ("ann", "bob"):
                await server.client.post("/v1/feedback", json={**body, "annotator": {"id": who}})
        await server.services.recorder.flush()
        work(server)
        with reading(server.services.database) as session:
            row = session.get(DriftRow, (version, "thumbs_down"))
        assert row is not None
        assert row.state["sample"] == [1.0, 1.0]


async def test_a_call_of_a_tool_is_no_empty_reply(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        captured = RecordedAnswer(
            id="c",
            at=now(),
            ref=CompletionRef("acme", "acme"),
            base="tiny",
            key=None,
            status=200,
            request={"messages": [{"role": "user", "content": "hi"}]},
            reply={"tool_calls": [{}]},
            finish_reason="tool_calls",
            usage=(1, 1),
            first_token_seconds=None,
            seconds=0.1,
        )
        measure_one = server.services.drift._baselines.measure
        row = row_of(captured, Policy.FULL, measure_one, TextHasher(b"key"))
        assert (row["signals"], row["observed"]) == (None, True)


async def test_a_private_voice_is_watched_without_its_words(tmp_path: Path) -> None:
    async with serving(tmp_path, policies=Policies(Policy.NONE)) as server:
        version = await server.voice("acme")
        await server.chat("acme")
        await server.services.recorder.flush()
        work(server)
        signals = await report(server, version)
        assert "reply_length" in signals
        assert "reply_topics" not in signals


@pytest.mark.parametrize("signal", ["cut_off", "reply_length"])
def test_a_watch_goes_on_from_its_json_as_if_nothing_had_been(signal: str) -> None:
    chance = np.random.default_rng(3)
    reference = (chance.random(80) < 0.1).astype(float)
    straight = ScalarDetector.fresh(signal, 20_000, reference)
    broken = ScalarDetector.fresh(signal, 20_000, reference)
    for i in range(300):
        value = float(chance.random() < (0.1 if i < 200 else 0.9))
        straight.observe(value, f"id{i}", f"2026-01-01T00:00:{i % 60:02}")
        broken.observe(value, f"id{i}", f"2026-01-01T00:00:{i % 60:02}")
        broken = detector_from_json(json.loads(json.dumps(broken.to_json())))  # type: ignore[assignment]
    assert straight == broken
    assert straight.status() is DriftStatus.DRIFT
    assert straight.since is not None
    assert 180 <= straight.since <= 215
    assert all(int(one[2:]) > 199 for one in straight.examples())


def test_a_watch_of_topics_notices_other_topics_and_shows_them() -> None:
    chance = np.random.default_rng(4)
    detector = VectorDetector.fresh("prompt_topics", 20_000)
    for i in range(300):
        detector.observe(chance.normal(size=DIMENSION), f"same{i}", "2026-01-01")
    assert detector.status() is DriftStatus.OK
    assert detector.seen.count == 100
    for i in range(100):
        detector.observe(chance.normal(size=DIMENSION) + 1.5, f"other{i}", "2026-01-01")
    assert detector.status() is DriftStatus.DRIFT
    assert all(one.startswith("other") for one in detector.examples())
    assert detector_from_json(json.loads(json.dumps(detector.to_json()))) == detector


def test_signals_measure_what_they_say() -> None:
    prompt = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "x"}]
    assert question_of([{"role": "user", "content": "zero"}, *prompt]) == "one two"
    assert asked_of([{"role": "user", "content": "zero"}, *prompt]) == "zero one two"
    good = measure(prompt, "All is well with your order.", "stop")
    assert (good["cut_off"], good["empty"], good["refusal"], good["repetition"]) == (0, 0, 0, 0)
    assert measure(prompt, "", "stop")["empty"] == 1
    assert measure(prompt, "and then", "length")["cut_off"] == 1
    for text in ("I'm sorry, but I can't help with that.", "As an AI, I do not eat.", "I am unable to assist you."):
        assert measure(prompt, text, "stop")["refusal"] == 1
    assert measure(prompt, "I can help you with that. You can't miss it.", "stop")["refusal"] == 0
    assert repetition(("a b c d " * 10).split()) > 0.8


def test_tone_tells_a_voice_from_others_and_needs_enough_to_learn_from() -> None:
    tone = learn(MINE[:30], PLAIN[:30])
    assert tone is not None
    assert tone.off(MINE[30:]).mean() < 0.2
    assert tone.off(PLAIN[30:]).mean() > 0.8
    assert learn(MINE[:5], PLAIN) is None


def test_texts_about_other_things_lie_apart() -> None:
    """A table in which tokens of a kind share a direction under a greater one that all tokens share."""
    chance = np.random.default_rng(5)
    kinds = np.repeat(chance.normal(size=(2, 32)), 1000, axis=0)
    table = 20 + kinds + 0.3 * chance.normal(size=(2000, 32))

    class Words:
        def encode(self, text: str, add_special_tokens: bool) -> Any:
            return SimpleNamespace(ids=[int(word) for word in text.split()])

    def text(kind: int) -> str:
        return " ".join(str(token) for token in chance.integers(1000 * kind, 1000 * kind + 1000, 80))

    embed = TokenEmbedding(Words(), reduced(table))
    one, same, other = embed([text(0), text(0), text(1)])
    assert one.shape == (DIMENSION,)
    assert one @ same > 0.3
    assert one @ other < -0.3
    assert not embed([""]).any()
