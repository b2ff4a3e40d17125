"""A version that failed its gates answers only by force, and the audit log says who forced what."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from polytone.contract.errors import CheckError, StorageError
from polytone.contract.evaluation import EvaluatedOn, FailedGate, GateVerdict, read_verdict, verdict_path, write_verdict
from polytone.contract.home import Home
from polytone.serve.adapters.promotion_gates import Gates
from polytone.serve.adapters.registry import Registry
from polytone.serve.adapters.rollout import Part
from polytone.serve.database.audit import read_audit
from polytone.serve.database.session import Database, open_database
from tests.support.adapters import make_base, make_version
from tests.support.processes import polytone
from tests.support.serving import database_url, serving

A, B = (f"acme@{letter * 12}" for letter in "ab")
DATA = EvaluatedOn(path="held_out.jsonl", sha256="0" * 64, rows=30, tokens=900)
REPEATS = FailedGate(
    gate="max_repetition", figure=0.52, bar=0.3, message="max_repetition: is 0.520; at most 0.3 is allowed."
)
EMPTY = FailedGate(gate="max_empty", figure=0.2, bar=0.05, message="max_empty: is 0.200; at most 0.05 is allowed.")


def judged(home: Home, version: str, *failed: FailedGate) -> GateVerdict:
    """Leave a verdict as an evaluation would."""
    word: Any = "not good enough" if failed else "good"
    verdict = GateVerdict(
        version=version,
        passed=not failed,
        verdict=word,
        reasons=list(failed),
        when=datetime(2026, 1, 1, tzinfo=UTC),
        data=DATA,
    )
    write_verdict(home, verdict)
    return verdict


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def database(home: Home) -> Iterator[Database]:
    database = open_database(database_url(home))
    yield database
    database.dispose()


@pytest.fixture
def registry(database: Database) -> Registry:
    registry = Registry(database)
    for version in (A, B):
        registry.publish(version, "ada")
    return registry


def test_the_newest_verdict_counts_and_is_read_as_it_was_written(home: Home) -> None:
    assert read_verdict(home, A) is None
    judged(home, A, REPEATS)
    verdict = judged(home, A)
    assert read_verdict(home, A) == verdict
    assert [path.name for path in home.evaluations.iterdir()] == [f"{A}.json"]


def test_a_verdict_that_cannot_be_written_is_an_error_with_a_code(home: Home) -> None:
    home.root.joinpath("evaluations").write_text("a file where a folder should be")
    with pytest.raises(StorageError) as caught:
        judged(home, A)
    assert caught.value.code == "disk_error"


@pytest.mark.parametrize("content", ["", "{}", '{"version": 1}'])
@pytest.mark.both_databases
def test_a_damaged_verdict_is_no_verdict_to_go_by(home: Home, registry: Registry, content: str) -> None:
    home.evaluations.mkdir()
    verdict_path(home, A).write_text(content)
    with pytest.raises(CheckError) as caught:
        registry.promote("acme", A, "ada", gates=Gates(home, forced=True))
    assert caught.value.code == "verdict_damaged"
    other = judged(home, B)
    verdict_path(home, A).write_text(other.model_dump_json())
    with pytest.raises(CheckError, match=f"it is of {B}"):
        read_verdict(home, A)


@pytest.mark.both_databases
def test_a_version_that_failed_is_refused_with_every_gate_and_the_way_out(
    home: Home, database: Database, registry: Registry
) -> None:
    judged(home, A, REPEATS, EMPTY)
    with pytest.raises(CheckError) as caught:
        registry.promote("acme", A, "ada", gates=Gates(home))
    error = caught.value
    assert (error.code, error.status, error.exit_code) == ("gates_failed", 422, 1)
    assert [reason["message"] for reason in error.reasons] == [f"{A}: {REPEATS.message}", f"{A}: {EMPTY.message}"]
    assert "--force" in error.message
    assert registry.desired().rollouts == {}
    assert [entry.action for entry in read_audit(database, 10)] == ["publish", "publish"]


@pytest.mark.both_databases
def test_a_forced_promotion_is_in_the_audit_log_with_the_gates_it_passed_over(
    home: Home, database: Database, registry: Registry
) -> None:
    judged(home, A, REPEATS, EMPTY)
    registry.promote("acme", A, "ada", gates=Gates(home, forced=True))
    entry = read_audit(database, 1)[0]
    assert (entry.actor, entry.action, entry.target) == ("ada", "promote", "acme")
    assert entry.after["forced"] is True
    assert entry.after["failed_gates"] == {A: ["max_repetition", "max_empty"]}


@pytest.mark.both_databases
def test_force_where_nothing_failed_is_no_force(home: Home, database: Database, registry: Registry) -> None:
    judged(home, A)
    registry.promote("acme", A, "ada", gates=Gates(home, forced=True))
    registry.promote("acme", B, "ada", gates=Gates(home))  # never evaluated
    assert all("forced" not in entry.after for entry in read_audit(database, 2))


@pytest.mark.both_databases
def test_a_canary_that_grows_is_judged_and_one_that_shrinks_is_not(
    home: Home, database: Database, registry: Registry
) -> None:
    registry.promote("acme", A, "ada", gates=Gates(home))
    judged(home, B, REPEATS)
    with pytest.raises(CheckError, match="max_repetition"):
        registry.roll_out("acme", [Part(A, 99), Part(B, 1)], "ada", gates=Gates(home))
    registry.roll_out("acme", [Part(A, 50), Part(B, 50)], "ada", gates=Gates(home, forced=True))
    with pytest.raises(CheckError, match="max_repetition"):
        registry.promote("acme", B, "ada", gates=Gates(home))
    judged(home, A)
    registry.roll_out("acme", [Part(A, 90), Part(B, 10)], "ada", gates=Gates(home))
    registry.promote("acme", A, "ada", gates=Gates(home))
    assert [entry.after.get("forced", False) for entry in reversed(read_audit(database, 4))] == [
        False,
        True,
        False,
        False,
    ]


@pytest.mark.both_databases
def test_going_back_is_never_held_up_by_a_gate(home: Home, registry: Registry) -> None:
    registry.promote("acme", A, "ada", gates=Gates(home))
    registry.promote("acme", B, "ada", gates=Gates(home))
    judged(home, A, REPEATS)
    registry.roll_back("acme", "ada")
    assert registry.desired().rollouts["acme"].versions == {A}


@pytest.mark.both_databases
async def test_over_http_a_rollout_is_refused_forced_and_told_of(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        failed, unknown = server.add("acme", seed=1), server.add("acme", seed=2)
        judged(server.home, failed, REPEATS)
        path, versions = "/admin/adapters/acme/rollout", [{"version": failed}]
        refused = await server.client.put(path, json={"versions": versions})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "gates_failed")
        assert [one["message"] for one in refused.json()["error"]["reasons"]] == [f"{failed}: {REPEATS.message}"]
        forced = await server.client.put(path, json={"versions": versions, "force": True})
        assert (forced.status_code, forced.json()["failed_gates"]) == (200, {failed: ["max_repetition"]})
        entry = (await server.client.get("/admin/audit")).json()["entries"][0]
        assert (entry["after"]["forced"], entry["after"]["failed_gates"]) == (True, {failed: ["max_repetition"]})
        shared = [{"version": failed, "weight": 50}, {"version": unknown, "weight": 50}]
        answer = await server.client.put(path, json={"versions": shared})
        assert (answer.status_code, answer.json()["not_evaluated"]) == (200, [unknown])
        assert (await server.client.post("/admin/adapters/acme/rollback")).status_code == 200


@pytest.mark.slow
def test_on_the_command_line_a_version_is_refused_forced_and_told_of(tmp_path: Path) -> None:
    home = Home(tmp_path)
    base = make_base(home)
    old, new = (make_version(home, base, "acme", seed).version for seed in (1, 2))
    settings = {"POLYTONE_BASE": base.id, "COLUMNS": "300"}

    def adapters(*words: str) -> Any:
        return polytone("adapters", *words, home=tmp_path, **settings)

    for version in (old, new):
        assert adapters("publish", version).returncode == 0
    done = adapters("promote", old)
    assert done.returncode == 0
    assert f"{old} was never evaluated on this machine: polytone evaluate {old}" in done.stdout
    judged(home, new, REPEATS)
    for words in (("promote", new), ("canary", new, "10")):
        done = adapters(*words)
        assert (done.returncode, "max_repetition" in done.stderr, "--force" in done.stderr) == (1, True, True), done
    done = adapters("promote", new, "--json")
    assert json.loads(done.stdout)["error"]["code"] == "gates_failed"
    done = adapters("canary", new, "10", "--force", "--json")
    assert json.loads(done.stdout)["failed_gates"] == {new: ["max_repetition"]}
    assert json.loads(done.stdout)["not_evaluated"] == [old]
    newest = json.loads(adapters("audit", "--json").stdout)["entries"][0]
    assert (newest["action"], newest["after"]["forced"]) == ("canary", True)
    assert f"by force: {new} failed max_repetition" in " ".join(adapters("audit").stdout.split())
