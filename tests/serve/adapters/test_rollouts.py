"""Rollouts: by weight, sticky, rolled back and audited, and never a mix of what two operators asked for."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from polytone.contract.errors import CheckError, ConflictError, InputError, NotFoundError, PolytoneError
from polytone.contract.home import Home
from polytone.contract.version_id import VersionId
from polytone.serve.adapters.registry import Desired, Registry, latest_rollouts
from polytone.serve.adapters.rollout import Part, Rollout, choose
from polytone.serve.database.audit import read_audit
from polytone.serve.database.session import Database, open_database
from polytone.serve.database.tables import RolloutRow
from tests.support.serving import Server, database_url, eventually, serving

A, B, C = (f"acme@{letter * 12}" for letter in "abc")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    engine = open_database(database_url(Home(tmp_path)))
    yield engine
    engine.dispose()


@pytest.fixture
def registry(database: Database) -> Registry:
    registry = Registry(database)
    for version in (A, B, C):
        registry.publish(version, "ada")
    return registry


def answering(registry: Registry) -> list[tuple[str, int]]:
    rollout = registry.desired().rollouts.get("acme")
    return [(part.version, part.weight) for part in rollout.parts] if rollout else []


@given(st.text(min_size=1), st.integers(1, 99))
def test_a_conversation_stays_and_a_growing_canary_keeps_its_own(conversation: str, percent: int) -> None:
    def at(share: int) -> str:
        return choose("acme", Rollout(1, (Part(A, 100 - share), Part(B, share))), conversation)

    assert at(percent) == at(percent)
    if at(percent) == B:
        assert at(min(99, percent + 1)) == B


def test_shares_are_as_the_weights_say() -> None:
    rollout = Rollout(1, (Part(A, 95), Part(B, 5), Part(C, 0)))
    counts = Counter(choose("acme", rollout, str(number)) for number in range(20_000))
    assert abs(counts[B] / 20_000 - 0.05) < 0.006
    assert counts[C] == 0


@pytest.mark.both_databases
def test_a_canary_that_went_to_everyone_is_rolled_back_whole(registry: Registry) -> None:
    """In an incident one rollback left the bad version a tenth of the customers."""
    registry.promote("acme", A, "ada")
    registry.roll_out("acme", [Part(A, 90), Part(B, 10)], "ada")
    registry.roll_out("acme", [Part(A, 50), Part(B, 50)], "ada")
    registry.promote("acme", B, "ada")
    registry.roll_back("acme", "bob")
    assert answering(registry) == [(A, 100)]
    with pytest.raises(CheckError, match="no earlier rollout"):
        registry.roll_back("acme", "bob")
    assert [(rollout.generation, rollout.previous) for rollout in registry.history("acme")] == [
        (5, None),
        (4, 1),
        (3, 2),
        (2, 1),
        (1, None),
    ]


@pytest.mark.both_databases
def test_a_rollback_skips_every_canary_since_another_version_answered_alone(registry: Registry) -> None:
    registry.promote("acme", A, "ada")
    registry.roll_out("acme", [Part(A, 90), Part(B, 10)], "ada")
    registry.roll_out("acme", [Part(A, 90), Part(C, 10)], "ada")
    registry.roll_out("acme", [Part(A, 0), Part(C, 100)], "ada")
    assert registry.roll_back("acme", "bob").parts == (Part(A, 100),)


@pytest.mark.both_databases
def test_inside_a_canary_a_rollback_is_one_step_back(registry: Registry) -> None:
    registry.promote("acme", A, "ada")
    registry.roll_out("acme", [Part(A, 90), Part(B, 10)], "ada")
    registry.roll_out("acme", [Part(A, 50), Part(B, 50)], "ada")
    assert registry.roll_back("acme", "bob").parts == (Part(A, 90), Part(B, 10))
    assert registry.roll_back("acme", "bob").parts == (Part(A, 100),)


@pytest.mark.both_databases
def test_a_voice_that_began_with_a_canary_goes_back_to_it(registry: Registry) -> None:
    registry.roll_out("acme", [Part(A, 50), Part(B, 50)], "ada")
    registry.promote("acme", B, "ada")
    assert registry.roll_back("acme", "bob").parts == (Part(A, 50), Part(B, 50))


@pytest.mark.both_databases
def test_a_voice_taken_away_can_be_brought_back(registry: Registry) -> None:
    registry.promote("acme", A, "ada")
    assert registry.remove_voice("acme", "ada") == [A]
    assert answering(registry) == []
    registry.roll_back("acme", "ada")
    assert answering(registry) == [(A, 100)]


@pytest.mark.both_databases
def test_rolling_back_to_a_retired_version_is_refused(registry: Registry) -> None:
    registry.promote("acme", A, "ada")
    registry.promote("acme", B, "ada")
    registry.retire(A, "ada")
    with pytest.raises(CheckError, match="was retired"):
        registry.roll_back("acme", "ada")
    assert answering(registry) == [(B, 100)]


@pytest.mark.both_databases
def test_the_same_again_changes_nothing_and_is_not_audited_twice(database: Database, registry: Registry) -> None:
    first = registry.promote("acme", A, "ada")
    assert registry.promote("acme", A, "ada") == first
    assert registry.publish(A, "ada") is False
    registry.retire(B, "ada")
    assert registry.retire(B, "ada") is False
    actions = [(entry.actor, entry.action, entry.target) for entry in reversed(read_audit(database, 10))]
    assert actions == [("ada", "publish", version) for version in (A, B, C)] + [
        ("ada", "promote", "acme"),
        ("ada", "retire", B),
    ]
    assert read_audit(database, 1, target="acme")[0].after["versions"] == [{"version": A, "weight": 100}]


@pytest.mark.both_databases
def test_whoever_looked_at_an_older_state_gets_a_conflict(registry: Registry) -> None:
    registry.promote("acme", A, "ada", expected=0)
    with pytest.raises(ConflictError) as caught:
        registry.promote("acme", B, "bob", expected=0)
    assert (caught.value.code, caught.value.status) == ("changed_meanwhile", 409)
    with pytest.raises(ConflictError):
        registry.roll_back("acme", "bob", expected=7)
    assert answering(registry) == [(A, 100)]


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [Part(A, 50), Part(A, 50)],
        [Part(A, 0)],
        [Part(A, -1), Part(B, 2)],
        [Part(f"acme@{number:012d}", 1) for number in range(17)],
        [Part("other@aaaaaaaaaaaa", 1)],
    ],
)
@pytest.mark.both_databases
def test_a_rollout_that_makes_no_sense_is_refused(registry: Registry, parts: list[Part]) -> None:
    with pytest.raises(InputError):
        registry.roll_out("acme", parts, "ada")
    with pytest.raises(NotFoundError):
        registry.promote("acme", "acme@000000000000", "ada")
    assert answering(registry) == []


@pytest.mark.both_databases
async def test_two_operators_at_once_never_leave_a_mixed_state(database: Database, registry: Registry) -> None:
    """Promote and retire race for the same version; whichever wins, what answers is published."""
    for _ in range(10):
        registry.publish(B, "ada")
        registry.promote("acme", A, "ada")

        def attempt(work: str) -> str:
            try:
                if work == "promote":
                    Registry(database).promote("acme", B, "ada")
                else:
                    Registry(database).retire(B, "bob")
            except PolytoneError as error:
                return error.code
            return work

        await asyncio.gather(*(asyncio.to_thread(attempt, work) for work in ("promote", "retire") * 3))
        desired = registry.desired()
        assert desired.rollouts["acme"].versions <= desired.versions


@pytest.mark.both_databases
def test_changes_at_once_come_one_after_the_other(database: Database, registry: Registry) -> None:
    """On PostgreSQL each looked at the same rollout, and all but one were refused."""

    def change(number: int) -> None:
        if number % 4:
            Registry(database).promote("acme", (A, B, C)[number % 3], "ada")
        else:
            with contextlib.suppress(CheckError):  # nothing to go back to
                Registry(database).roll_back("acme", "bob")

    registry.promote("acme", A, "ada")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(40)))
    entries = read_audit(database, 100, "acme")[::-1]
    after = [entry.after for entry in entries]
    assert [entry.before for entry in entries] == [None, *after[:-1]]
    assert [one["generation"] for one in after] == list(range(1, len(after) + 1))
    assert [rollout.as_json() for rollout in registry.history("acme")] == after[::-1]


@pytest.mark.both_databases
def test_what_is_desired_is_of_one_moment(
    database: Database, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL a replica once saw a version answer for a voice and not yet be published."""
    new = f"acme@{'d' * 12}"

    def meanwhile(session: Session) -> list[RolloutRow]:
        if Registry(database).publish(new, "ada"):
            Registry(database).promote("acme", new, "ada")
        return latest_rollouts(session)

    monkeypatch.setattr("polytone.serve.adapters.registry.latest_rollouts", meanwhile)
    assert registry.desired() == Desired(frozenset({A, B, C}))
    assert registry.desired().rollouts["acme"].versions == {new}


@pytest.mark.both_databases
async def test_a_canary_answers_its_share_and_conversations_stay(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        stable = await server.voice("acme", seed=1)
        canary = server.add("acme", seed=2)
        await server.until_ready(canary)
        body = {"versions": [{"version": stable, "weight": 80}, {"version": canary, "weight": 20}]}
        assert (await server.client.put("/admin/adapters/acme/rollout", json=body)).status_code == 200
        await eventually(lambda: len(server.services.adapters.rollouts["acme"].parts) == 2)

        async def who(conversation: str) -> str:
            response = await server.chat("acme", headers={"x-conversation-id": conversation})
            assert response.headers["x-polytone-adapter"] == response.json()["model"]
            return str(response.json()["model"])

        first = {str(number): await who(str(number)) for number in range(200)}
        assert 20 <= Counter(first.values())[canary] <= 60
        assert {number: await who(number) for number in list(first)[:50]} == dict(list(first.items())[:50])
        assert (await server.chat("acme", user="ada")).json()["model"] == (
            await server.chat("acme", user="ada")
        ).json()["model"]


@pytest.mark.both_databases
async def test_an_operator_rolls_out_and_back_over_http(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        old = await server.voice("acme", seed=1)
        new = server.add("acme", seed=2)
        body = {"versions": [{"version": new}], "generation": 1}
        assert (await server.client.put("/admin/adapters/acme/rollout", json=body)).json()["generation"] == 2
        stale = await server.client.put("/admin/adapters/acme/rollout", json={**body, "versions": [{"version": old}]})
        assert (stale.status_code, stale.json()["error"]["code"]) == (409, "changed_meanwhile")
        await eventually(lambda: server.answers("acme") == new)
        assert (await server.client.post("/admin/adapters/acme/rollback")).json()["versions"][0]["version"] == old
        await eventually(lambda: server.answers("acme") == old)
        digest = VersionId.parse(new).digest
        assert (await server.client.delete(f"/admin/adapters/acme/versions/{digest}")).json()["state"] == "retired"
        await eventually(lambda: server.state(new) == "gone")
        used = await server.client.delete(f"/admin/adapters/acme/versions/{VersionId.parse(old).digest}")
        assert (used.status_code, used.json()["error"]["code"]) == (422, "version_in_use")
        actions = [entry["action"] for entry in (await server.client.get("/admin/audit")).json()["entries"]]
        assert actions == ["retire", "rollback", "rollout", "publish", "promote", "publish"]
        assert (await server.client.delete("/admin/adapters/acme")).json() == {"name": "acme", "versions": [old]}
        await eventually(lambda: server.answers("acme") is None)


async def test_more_voices_than_fit_take_turns_and_the_least_used_is_evicted(tmp_path: Path) -> None:
    async with serving(tmp_path, max_resident=2, max_batch=2) as server:
        versions = [await server.voice(f"v{number}", seed=number) for number in range(2)]
        for number in range(2, 5):
            version = server.add(f"v{number}", seed=number)
            server.registry.promote(f"v{number}", version, "test")
            versions.append(version)
        await eventually(lambda: len(server.services.adapters.rollouts) == 5)
        for round_ in range(2):
            for number, version in enumerate(versions):
                assert (await server.chat(f"v{number}")).json()["model"] == version, round_
                assert len(server.engine.loaded) <= 2
        assert set(server.engine.loaded) == set(versions[-2:])
        text = (await server.client.get("/metrics")).text
        assert "polytone_adapters_published 5.0" in text
        assert "polytone_adapter_evictions_total" in text


async def test_a_rare_voice_is_answered_while_another_floods_the_only_slot(tmp_path: Path) -> None:
    async with serving(tmp_path, step_seconds=0.005, max_resident=1, max_batch=1) as server:
        flood = await server.voice("flood", seed=1)
        rare = server.add("rare", seed=2)
        server.registry.promote("rare", rare, "test")
        await eventually(lambda: "rare" in server.services.adapters.rollouts)
        order: list[str] = []

        async def ask(model: str) -> None:
            response = await server.chat(model, stream=True)
            assert "[DONE]" in response.text
            order.append(model)

        flooding = [asyncio.create_task(ask("flood")) for _ in range(20)]
        await eventually(lambda: server.engine.running > 0)
        waiting = asyncio.create_task(ask("rare"))
        await eventually(lambda: server.services.adapters.waiting > 0)
        flooding += [asyncio.create_task(ask("flood")) for _ in range(20)]
        await asyncio.gather(waiting, *flooding)
        assert order.index("rare") == 20
        assert flood in server.engine.loaded


async def test_a_promoted_version_beyond_the_limit_is_verified_before_it_takes_over(tmp_path: Path) -> None:
    async with serving(tmp_path, max_resident=1, max_batch=1) as server:
        await server.voice("acme", seed=1)
        new = server.add("acme", seed=2)
        server.registry.promote("acme", new, "test")
        await eventually(lambda: server.answers("acme") == new)
        assert server.engine.loads == 2
        assert server.state(new) == "ready"


async def evicted(server: Server) -> str:
    """A version that was verified once and had to make room since."""
    version = await server.voice("acme", seed=1)
    server.registry.promote("other", server.add("other", seed=2), "test")
    await eventually(lambda: "other" in server.services.adapters.rollouts)
    assert (await server.chat("other")).status_code == 200
    assert version not in server.engine.loaded
    return version


async def test_no_byte_leaves_before_a_version_that_was_loaded_again_is_verified(tmp_path: Path) -> None:
    """The second request for an evicted version once found it loaded, and was answered while it was being verified."""
    async with serving(tmp_path, max_resident=1, max_batch=1) as server:
        version = await evicted(server)
        server.engine.verify_seconds = 0.2
        asked = [asyncio.create_task(server.chat("acme", stream=stream)) for stream in (False, True, False)]
        await eventually(lambda: server.engine.verifying == [version])
        await asyncio.sleep(0.1)
        assert server.engine.verifying == [version]
        assert not any(task.done() for task in asked)
        answers = await asyncio.gather(*asked)
        assert [answer.headers["x-polytone-adapter"] for answer in answers] == [version] * 3
        assert all(version in answer.text for answer in answers)


async def test_the_first_answer_of_a_voice_has_its_own_system_prompt(tmp_path: Path) -> None:
    """It is worked on before the version is verified for the first time, and once came without."""
    async with serving(tmp_path, max_resident=1, max_batch=1) as server:
        await server.voice("acme")
        server.registry.promote("other", server.add("other", seed=2, system_prompt="Be brief."), "test")
        await eventually(lambda: "other" in server.services.adapters.rollouts)
        server.engine.requests.clear()
        assert (await server.chat("other")).status_code == 200
        chats = [request["messages"] for request in server.engine.requests if "messages" in request]
        assert [messages[0]["content"] for messages in chats] == ["Be brief."]


async def test_nothing_is_answered_by_a_version_that_came_back_as_another(tmp_path: Path) -> None:
    async with serving(tmp_path, max_resident=1, max_batch=1) as server:
        version = await evicted(server)
        server.engine.wrong, server.engine.verify_seconds = True, 0.1
        answers = await asyncio.gather(*(server.chat("acme", stream=stream) for stream in (False, True)))
        assert [answer.status_code for answer in answers] == [503, 503]
        assert [answer.json()["error"]["code"] for answer in answers] == ["voice_not_ready"] * 2
        assert version not in server.engine.loaded
        assert server.engine.running == 0


async def test_an_answer_is_worked_on_with_the_load_and_leaves_once_the_version_is_verified(tmp_path: Path) -> None:
    """A request for an evicted version once waited for one more step of the engine than it had to."""
    async with serving(tmp_path, max_resident=1, max_batch=1) as server:
        version = await evicted(server)
        server.engine.load_seconds, server.engine.verify_seconds = 0.1, 0.4
        server.engine.requests.clear()
        asked = asyncio.create_task(server.chat("acme", stream=True))
        await eventually(lambda: any("messages" in request for request in server.engine.requests))
        assert server.services.adapters.loaded() == set()
        await eventually(lambda: server.services.adapters.loaded() == {version})
        assert not asked.done()
        assert (await asked).headers["x-polytone-adapter"] == version


async def test_an_engine_that_wants_to_be_waited_for_is_asked_after_the_load(tmp_path: Path) -> None:
    async with serving(tmp_path, max_resident=1, max_batch=1) as server:
        server.engine.loads_in_order = False
        version = await evicted(server)
        server.engine.load_seconds = 0.1
        assert (await server.chat("acme")).json()["model"] == version


async def test_an_answer_that_came_with_a_load_that_fails_never_leaves(tmp_path: Path) -> None:
    async with serving(tmp_path, max_resident=1, max_batch=1) as server:
        version = await evicted(server)
        server.engine.load_seconds, server.engine.refuses = 0.1, "its disk failed"
        answers = await asyncio.gather(*(server.chat("acme", stream=stream) for stream in (False, True)))
        assert [answer.status_code for answer in answers] == [503, 503]
        assert not any("its disk failed" in answer.text for answer in answers)  # the reason is not for clients
        assert server.services.adapters.loaded() == set(server.engine.loaded) == set()
        assert server.engine.running == 0
        assert server.services.adapters.states()[version] == ("failed", "its disk failed")


async def test_a_client_that_leaves_during_a_load_leaves_no_uncounted_version(tmp_path: Path) -> None:
    async with serving(tmp_path, max_resident=1, max_batch=1) as server:
        version = await evicted(server)
        loads = server.engine.loads
        server.engine.load_seconds = 0.1
        adapter = server.services.adapters.route("acme").adapter
        assert adapter is not None
        held = asyncio.create_task(server.services.adapters.acquire(adapter))
        await eventually(lambda: server.engine.loads > loads)
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        await eventually(lambda: server.services.adapters.loaded() == {version})
        assert set(server.engine.loaded) == {version}
        assert (await server.chat("acme")).json()["model"] == version
        assert server.engine.loads == loads + 1
