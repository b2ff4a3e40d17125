"""A backup is taken while servers run, and everything in it comes back; what is not whole is refused."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect, select, text
from typer.testing import CliRunner

from polytone.cli.main import app
from polytone.contract.base import load_base
from polytone.contract.errors import PolytoneError
from polytone.contract.evaluation import EvaluatedOn, FailedGate, GateVerdict, read_verdict, write_verdict
from polytone.contract.home import Home
from polytone.serve.adapters.registry import Registry
from polytone.serve.adapters.replicas import Replicas
from polytone.serve.adapters.rollout import Part
from polytone.serve.adapters.store import AdapterStore
from polytone.serve.auth.keys import KeyStore, Kind
from polytone.serve.backup.checking import check_backup
from polytone.serve.backup.databases import dumper_for
from polytone.serve.backup.files import exclusive_lock, hash_file
from polytone.serve.backup.manifest import MANIFEST_NAME, Backup, read_backup
from polytone.serve.backup.restoring import Restored, restore
from polytone.serve.backup.taking import Taken, back_up
from polytone.serve.database.audit import read_audit
from polytone.serve.database.session import Database, migrate, new_database, now, open_database, reading, writing
from polytone.serve.database.tables import FeedbackRow, ReplicaRow, ReviewRow, Table
from polytone.serve.traffic.capture import CompletionRef
from polytone.serve.traffic.feedback import FeedbackStore
from polytone.serve.traffic.reviews import Decision, Reviews
from polytone.serve.traffic.schemas import Annotator, FeedbackBody
from tests.serve.drift.test_drift import MINE, PLAIN, answers, referenced, work
from tests.serve.traffic.test_export import ask, give
from tests.serve.traffic.test_reviews import decide, lease
from tests.support.adapters import make_base, make_version
from tests.support.postgresql import Postgresql
from tests.support.processes import polytone
from tests.support.serving import Server, database_url, serving

OBSERVED = {"replicas", "residency"}
ANN = Annotator(id="ann", kind="human")


@dataclass(frozen=True)
class Place:
    """A home and the URL of its database."""

    home: Home
    url: str

    def back_up(self, folder: Path, bases: bool = True, tell: Callable[..., None] = lambda *_: None) -> Taken:
        return back_up(self.home, dumper_for(self.url), None, folder, bases, tell)

    def restore(
        self, folder: Path, store: AdapterStore | None = None, tell: Callable[..., None] = lambda *_: None
    ) -> Restored:
        return restore(folder, self.home, dumper_for(self.url), store, tell)

    def files(self) -> dict[str, bytes]:
        """Everything in the home but the database."""
        files = {path.relative_to(self.home.root).as_posix(): path for path in self.home.root.rglob("*")}
        return {name: path.read_bytes() for name, path in files.items() if path.is_file() and "polytone.db" not in name}

    @contextmanager
    def opened(self) -> Iterator[Database]:
        database = open_database(self.url)
        try:
            yield database
        finally:
            database.dispose()

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of every table, but for what servers say of themselves."""
        database = create_engine(self.url)
        try:
            with database.connect() as connection:
                return {
                    table.name: sorted(map(tuple, connection.execute(select(table))), key=str)
                    for table in Table.metadata.sorted_tables
                    if table.name not in OBSERVED and inspect(connection).has_table(table.name)
                }
        finally:
            database.dispose()


@pytest.fixture
def here(tmp_path: Path) -> Place:
    home = Home(tmp_path / "here")
    return Place(home, database_url(home))


@pytest.fixture
def elsewhere(kind_of_database: str, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty home, and an empty database of the kind that the test runs on."""
    return empty_place(Home(tmp_path / "elsewhere"), kind_of_database, request)


def empty_place(home: Home, kind_of_database: str, request: pytest.FixtureRequest) -> Place:
    if kind_of_database == "sqlite":
        return Place(home, home.database_url)
    server: Postgresql = request.getfixturevalue("postgresql")
    return Place(home, server.empty())


@pytest.fixture
def small(here: Place) -> Place:
    """A base, two published versions of which one answers, a verdict, a key and a thumb."""
    base = make_base(here.home)
    first, second = [make_version(here.home, base, "acme", seed).version for seed in (1, 2)]
    with here.opened() as database:
        registry = Registry(database)
        for version in (first, second):
            registry.publish(version, "test")
        registry.promote("acme", first, "test")
        KeyStore(database).create("operator", Kind.ADMIN, "test")
        say(database, "chatcmpl-1", first)
    write_verdict(here.home, failed_verdict(second))
    (here.home.evaluations / f"{second}-20260101-000000").mkdir()
    (here.home.evaluations / f"{second}-20260101-000000" / "report.md").write_text("# Report\n")
    return here


def say(database: Database, completion: str, version: str) -> str:
    body = FeedbackBody.model_validate({"completion_id": completion, "key": "thumb", "value": "down"})
    return FeedbackStore(database).give(body, CompletionRef("acme", version, None), ANN).row.id


def failed_verdict(version: str) -> GateVerdict:
    return GateVerdict(
        version=version,
        passed=False,
        verdict="not good enough",
        reasons=[FailedGate(gate="improvement", figure=0.01, bar=0.05, message="is too small")],
        data=EvaluatedOn(path="held_out.jsonl", sha256="0" * 64, rows=2, tokens=10),
    )


async def live(server: Server) -> dict[str, str]:
    """A day of a server's life; returns the headers of its two keys."""
    first = referenced(server)
    second = server.add("acme", 7)
    zest = server.add("zest", 3)
    gone = server.add("zest", 4)
    server.registry.promote("acme", first, "ann")
    server.registry.roll_out("acme", [Part(first, 90), Part(second, 10)], "ann")
    server.registry.roll_back("acme", "bob")
    server.registry.promote("zest", gone, "ann")
    server.registry.promote("zest", zest, "ann")
    server.registry.retire(gone, "ann")
    await server.until_ready(first, second, zest)
    answered = [await ask(server, f"q{i}", user=f"conversation-{i % 2}") for i in range(4)]
    thumb = await give(server, answered[0], "thumb", value="down")
    await give(server, answered[0], "thumb", value="up", supersedes=thumb["id"])
    await give(server, answered[1], "thumb", value="down")
    await give(server, answered[2], "thumb", "bob", value="down", idempotency_key="once")
    await give(server, answered[3], "correction", text="It is on its way, säuberlich.")
    await server.services.recorder.flush()
    assert await lease(server, "ann")
    assert (await decide(server, answered[2], "bob", "edit", text="Better.")).status_code == 200
    kept = (await server.client.post("/v1/conversations", json={"title": "Parcels"})).json()["id"]
    turn = {"role": "user", "content": "Where is it?", "details": {"a": [1, None]}}
    assert (await server.client.post(f"/v1/conversations/{kept}/turns", json=turn)).status_code == 201
    answers(server, first, MINE)
    work(server)
    answers(server, first, PLAIN)
    work(server)
    assert (await server.client.post(f"/admin/drift/{first}/tone/acknowledge")).status_code == 200
    keys = {"admin": server.key(Kind.ADMIN), "inference": server.key(Kind.INFERENCE, adapters=frozenset({"acme"}))}
    server.services.keys.create("old", Kind.ADMIN, "test")
    server.services.keys.revoke("old", "test")
    return {kind: header["authorization"] for kind, header in keys.items()}


@pytest.mark.both_databases
@pytest.mark.slow
async def test_everything_comes_back(here: Place, elsewhere: Place, tmp_path: Path) -> None:
    async with serving(here.home.root) as server:
        keys = await live(server)
        admin = {"authorization": keys["admin"]}
        acme, zest = server.answers("acme"), server.answers("zest")
        before = here.rows()
        feedback = (await server.client.get("/v1/feedback", headers={"authorization": keys["inference"]})).json()
        here.back_up(tmp_path / "backup")
        assert here.rows() == before
    assert all(before.values()), [name for name, rows in before.items() if not rows]

    restored = elsewhere.restore(tmp_path / "backup")

    assert restored.missing == ()
    assert elsewhere.rows() == before
    assert elsewhere.files() == here.files()
    async with serving(elsewhere.home.root, shared_database=elsewhere.url) as server:
        await server.until_ready(*filter(None, (acme, zest)))
        assert (server.answers("acme"), server.answers("zest")) == (acme, zest)
        inference = {"authorization": keys["inference"]}
        assert (await server.chat("acme", inference)).json()["model"] == acme
        assert (await server.chat("zest", inference)).json()["error"]["code"] == "model_not_allowed"
        assert (await server.chat("acme", {"authorization": "Bearer pt-inf-no"})).status_code == 401
        assert (await server.client.get("/v1/feedback", headers=inference)).json() == feedback
        history = server.registry.history("acme")
        server.registry.promote("acme", history[1].parts[1].version, "test", history[0].generation)
        assert server.registry.history("acme")[0].generation == history[0].generation + 1
        newest = read_audit(server.services.database, 2)
        assert newest[0].id == newest[1].id + 1
        assert (await server.client.get("/admin/drift", headers=admin)).status_code == 200


@pytest.mark.both_databases
def test_numbers_go_on_after_the_last_row(small: Place, elsewhere: Place, tmp_path: Path) -> None:
    with small.opened() as database:
        for number in range(5):
            say(database, f"chatcmpl-{number}", "acme@0123456789ab")
    small.back_up(tmp_path / "backup")
    elsewhere.restore(tmp_path / "backup")
    with elsewhere.opened() as database:
        with reading(database) as session:
            last = max(session.scalars(select(FeedbackRow.number)))
        say(database, "chatcmpl-new", "acme@0123456789ab")
        (new,), _ = FeedbackStore(database).page(after=last)
        assert (new.number, new.target_id) == (last + 1, "chatcmpl-new")


@pytest.mark.both_databases
def test_servers_that_ran_are_not_waited_for(small: Place, elsewhere: Place, tmp_path: Path) -> None:
    """One whose clock was ahead once seemed to live for as long as it was."""
    with small.opened() as database:
        Replicas(database).report("dead", {"acme@0123456789ab": ("ready", None)}, {"acme": 1})
        with writing(database) as session:
            session.merge(ReplicaRow(name="ahead", seen_at=now().replace(year=now().year + 1), routes={}))
    small.back_up(tmp_path / "backup")
    elsewhere.restore(tmp_path / "backup")
    with elsewhere.opened() as database:
        assert Replicas(database).living() == set()
        assert Replicas(database).residency() == []


@pytest.mark.both_databases
def test_a_review_that_was_leased_can_be_decided_by_whoever_held_it(
    small: Place, elsewhere: Place, tmp_path: Path
) -> None:
    with small.opened() as database, writing(database) as session:
        review = session.get_one(ReviewRow, "chatcmpl-1")
        review.leased_by, review.leased_until = "ann", now().replace(year=now().year + 1)
    small.back_up(tmp_path / "backup")
    elsewhere.restore(tmp_path / "backup")
    with elsewhere.opened() as database:
        with pytest.raises(PolytoneError) as caught:
            Reviews(database).decide("chatcmpl-1", Decision.ACCEPT, "bob")
        assert caught.value.code == "review_leased"
        assert Reviews(database).decide("chatcmpl-1", Decision.ACCEPT, "ann").state == "accepted"


@pytest.mark.both_databases
def test_a_backup_sees_one_moment_while_writes_go_on(
    small: Place, elsewhere: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thumb comes with its review in one transaction, and each version is written before it is recorded."""
    monkeypatch.setattr("polytone.serve.backup.sqlite.PAGES", 1)
    base, database = load_base(small.home, "tiny"), open_database(small.url)
    registry, wrote, stop = Registry(database), threading.Semaphore(0), threading.Event()
    acknowledged: list[str] = []

    def write() -> None:
        for number in range(100_000):
            if stop.is_set():
                return
            version = make_version(small.home, base, "busy", number).version if number < 30 else "busy@0123456789ab"
            if number < 30:
                registry.publish(version, "test")
            acknowledged.append(say(database, f"chatcmpl-busy-{number}", version))
            wrote.release()

    def tell(what: str, _done: int, _total: int) -> None:
        if "database" in what:
            assert wrote.acquire(timeout=30)  # so something is written in the middle of the copy

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            wrote.acquire()
        before = list(acknowledged)
        backup = small.back_up(tmp_path / "backup", tell=tell).backup
    finally:
        stop.set()
        writer.join()
        database.dispose()
    elsewhere.restore(tmp_path / "backup")
    assert backup.left_out == {}
    with elsewhere.opened() as restored, reading(restored) as session:
        said = list(session.scalars(select(FeedbackRow).order_by(FeedbackRow.number)))
        reviewed = set(session.scalars(select(ReviewRow.completion_id)))
        recorded = {row.id for row in Registry(restored).versions()}
    ids = [row.id for row in said]
    assert len(ids) == len(set(ids)) < len(acknowledged) + 1
    assert set(before) <= set(ids) <= {*acknowledged, ids[0]}
    assert {row.target_id for row in said} == reviewed
    assert recorded == {version for version, stored in backup.versions.items() if stored.state == "published"}


@pytest.mark.both_databases
def test_again_into_the_same_folder_copies_only_what_is_new(small: Place, elsewhere: Place, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    small.back_up(folder)
    first = {path: path.stat() for path in sorted(folder.rglob("*.safetensors"))}
    assert first
    new = make_version(small.home, load_base(small.home, "tiny"), "acme", 9).version
    with small.opened() as database:
        Registry(database).publish(new, "test")
    write_verdict(small.home, failed_verdict(new))
    assert small.back_up(folder).new == (new,)
    for path, before in first.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(list(folder.glob("polytone-*"))) == 1
    assert sorted(path.name for path in folder.glob("adapters/acme/*")) == sorted(
        path.name for path in small.home.adapters.glob("acme/*")
    )
    elsewhere.restore(folder)
    assert elsewhere.files() == small.files()
    verdict = read_verdict(elsewhere.home, new)
    assert verdict
    assert not verdict.passed


@pytest.mark.both_databases
def test_a_backup_of_an_older_schema_is_brought_up_to_date(
    kind_of_database: str, request: pytest.FixtureRequest, elsewhere: Place, tmp_path: Path
) -> None:
    """And taking it leaves the database as it is: the server that uses it is the older one."""
    old, folder = empty_place(Home(tmp_path / "old"), kind_of_database, request), tmp_path / "backup"
    database = new_database(old.url)
    migrate(database, "0004")
    database.dispose()
    assert old.back_up(folder).backup.database.revision == "0004"
    assert "conversations" not in old.rows()
    elsewhere.restore(folder)
    assert elsewhere.rows()["conversations"] == []
    elsewhere.back_up(folder.with_name("again"))


@pytest.mark.both_databases
def test_what_is_not_whole_is_refused_and_nothing_is_written(small: Place, elsewhere: Place, tmp_path: Path) -> None:
    good = tmp_path / "good"
    version = small.back_up(good).new[0]
    stored = read_backup(good).versions[version].folder

    def damaged_dump(folder: Path, backup: Backup) -> None:
        flip(folder / backup.database.file)

    def missing_dump(folder: Path, backup: Backup) -> None:
        (folder / backup.database.file).unlink()

    def missing_version(folder: Path, _: Backup) -> None:
        shutil.rmtree(folder / stored)

    def damaged_version(folder: Path, _: Backup) -> None:
        flip(folder / stored / "adapter_model.safetensors")

    def changed_prompt(folder: Path, _: Backup) -> None:
        path = folder / stored / "manifest.json"
        path.write_text(path.read_text().replace("Apache-2.0", "Apache-2.1"))

    def forged_digest(folder: Path, backup: Backup) -> None:
        """The manifest of the backup is made to fit: a version's name still says what it is."""
        flip(folder / stored / "adapter_model.safetensors")
        changed = json.loads(backup.model_dump_json(by_alias=True))
        found = hash_file(folder / stored / "adapter_model.safetensors")
        changed["versions"][version]["files"]["adapter_model.safetensors"] = found.model_dump()
        (folder / MANIFEST_NAME).write_text(json.dumps(changed))

    def newer(folder: Path, backup: Backup) -> None:
        database = backup.database.model_copy(update={"revision": "9999"})
        rewrite(folder, backup.model_copy(update={"database": database, "polytone": "9.0"}))

    def way_out(folder: Path, backup: Backup) -> None:
        text = backup.model_dump_json(by_alias=True)
        (folder / MANIFEST_NAME).write_text(text.replace('"README.md"', '"../../../README.md"'))

    def cut_off(folder: Path, _: Backup) -> None:
        (folder / MANIFEST_NAME).unlink()

    for change, code in (
        (damaged_dump, "backup_damaged"),
        (missing_dump, "backup_incomplete"),
        (missing_version, "backup_incomplete"),
        (damaged_version, "backup_damaged"),
        (changed_prompt, "backup_damaged"),
        (forged_digest, "wrong_digest"),
        (newer, "backup_newer"),
        (way_out, "backup_invalid"),
        (cut_off, "backup_not_found"),
    ):
        folder = tmp_path / change.__name__
        shutil.copytree(good, folder)
        change(folder, read_backup(folder))
        with pytest.raises(PolytoneError) as caught:
            elsewhere.restore(folder)
        assert caught.value.code == code, change.__name__
        with pytest.raises(PolytoneError) as caught:
            check_backup(folder, lambda *_: None)
        assert caught.value.code == code, change.__name__
        assert not elsewhere.home.root.exists()
        assert dumper_for(elsewhere.url).contents() == []
    elsewhere.restore(good)
    assert elsewhere.rows() == small.rows()


def flip(path: Path) -> None:
    """Change a byte in the middle of a file, where it has data."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rewrite(folder: Path, backup: Backup) -> None:
    (folder / MANIFEST_NAME).write_text(backup.model_dump_json(by_alias=True))


def test_every_damage_is_named(small: Place, tmp_path: Path) -> None:
    backup = small.back_up(tmp_path / "backup").backup
    for stored in backup.versions.values():
        flip(tmp_path / "backup" / stored.folder / "adapter_model.safetensors")
    with pytest.raises(PolytoneError) as caught:
        check_backup(tmp_path / "backup", lambda *_: None)
    assert len(caught.value.reasons) == len(backup.versions) == 2


@pytest.mark.both_databases
def test_what_is_there_is_in_the_way_and_stays(small: Place, elsewhere: Place, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    small.back_up(folder)
    before, rows = small.files(), small.rows()
    with pytest.raises(PolytoneError) as caught:
        small.restore(folder)
    assert caught.value.code == "home_not_empty"
    assert str(small.home.adapters) in caught.value.message
    with pytest.raises(PolytoneError) as caught:  # a home of its own, and the database that is in use
        Place(elsewhere.home, small.url).restore(folder)
    assert caught.value.code == "database_not_empty"
    assert (small.files(), small.rows()) == (before, rows)
    assert not elsewhere.home.root.exists()


def test_a_backup_goes_into_a_dumper_for_its_kind(small: Place, postgresql: Postgresql, tmp_path: Path) -> None:
    small.back_up(tmp_path / "backup")
    with pytest.raises(PolytoneError) as caught:
        Place(Home(tmp_path / "elsewhere"), postgresql.empty()).restore(tmp_path / "backup")
    assert caught.value.code == "database_kind_differs"


def test_a_base_that_was_prepared_before_may_stay(small: Place, elsewhere: Place, tmp_path: Path) -> None:
    small.back_up(tmp_path / "backup")
    make_base(elsewhere.home, digest="c" * 64)
    with pytest.raises(PolytoneError) as caught:
        elsewhere.restore(tmp_path / "backup")
    assert (caught.value.code, "bases/tiny" in caught.value.message) == ("home_not_empty", True)
    make_base(elsewhere.home)
    elsewhere.restore(tmp_path / "backup")
    assert elsewhere.files() == small.files()


def test_without_bases_it_says_which_to_prepare(small: Place, elsewhere: Place, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    small.back_up(folder, bases=False)
    assert not (folder / "bases").exists()
    (missing,) = elsewhere.restore(folder).missing
    assert missing == load_base(small.home, "tiny")
    assert not list(elsewhere.home.bases.iterdir())
    small.back_up(folder)  # and now with them
    check_backup(folder, lambda *_: None)
    assert (folder / "bases" / "tiny" / "source" / "model.safetensors").is_file()


def test_only_the_owner_may_read_it(small: Place, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "backup"
    small.back_up(folder)
    check_private(folder)


def check_private(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_a_password_is_in_no_command_line(
    small: Place, postgresql: Postgresql, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What programs are called with can be read by anyone on the machine."""
    called = tmp_path / "called"
    for tool in ("pg_dump", "pg_restore"):
        real = shutil.which(tool)
        script = tmp_path / "bin" / tool
        script.parent.mkdir(exist_ok=True)
        script.write_text(
            f'#!/bin/sh\necho "$0 $*" >> {called}\necho "$PGPASSWORD" >> {called}.env\nexec {real} "$@"\n'
        )
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    urls = (postgresql.migrated(), postgresql.empty())
    secret = [one.replace("polytone@", "polytone:s3cr%40t@") for one in urls]
    Place(small.home, secret[0]).back_up(tmp_path / "backup")
    Place(Home(tmp_path / "elsewhere"), secret[1]).restore(tmp_path / "backup")
    assert "pg_dump --format=custom" in called.read_text()
    assert "pg_restore --no-owner" in called.read_text()
    assert "s3cr" not in called.read_text()
    assert set(Path(f"{called}.env").read_text().split()) == {"s3cr@t"}
    assert not [path for path in (tmp_path / "backup").rglob("*") if path.is_file() and b"s3cr" in path.read_bytes()]


def test_a_dump_that_fails_says_why_and_the_backup_before_stands(
    small: Place, postgresql: Postgresql, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = tmp_path / "backup", postgresql.empty()
    poor = url.replace("polytone@", "nobody_much:hunter2@")
    with Place(small.home, url).opened() as database, database.begin() as connection:
        connection.execute(text("CREATE ROLE nobody_much LOGIN"))
    Place(small.home, url).back_up(folder)
    before = (folder / MANIFEST_NAME).read_bytes()

    def refused(place: Place) -> tuple[str, str]:
        with pytest.raises(PolytoneError) as caught:
            place.back_up(folder)
        assert "hunter2" not in caught.value.message
        return caught.value.code, caught.value.message

    code, message = refused(Place(small.home, poor))
    assert (code, "permission denied" in message) == ("database_unavailable", True)
    code, message = refused(Place(small.home, url.replace("/test_", "/none_")))
    assert (code, "does not exist" in message) == ("database_unavailable", True)
    with Place(small.home, url).opened() as database, database.begin() as connection:
        connection.execute(text("GRANT SELECT ON ALL TABLES IN SCHEMA public TO nobody_much"))
        connection.execute(text("CREATE TABLE another (id int)"))
    code, message = refused(Place(small.home, poor))
    assert (code, "permission denied for table another" in message) == ("dump_failed", True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("polytone.serve.backup.postgresql.POSTGRESQL_FOLDERS", tmp_path)
    assert refused(Place(small.home, url))[0] == "postgresql_tools_missing"
    assert (folder / MANIFEST_NAME).read_bytes() == before
    check_backup(folder, lambda *_: None)
    assert len(list(folder.glob("polytone-*"))) == 1


def test_a_version_that_cannot_be_saved_is_named_and_the_rest_is_saved(small: Place, tmp_path: Path) -> None:
    base = load_base(small.home, "tiny")
    retired, published, damaged = [make_version(small.home, base, "zest", seed).version for seed in range(3)]
    with small.opened() as database:
        for version in (retired, published, damaged):
            Registry(database).publish(version, "test")
        Registry(database).retire(retired, "test")
    shutil.rmtree(small.home.adapter_folder(retired))
    shutil.rmtree(small.home.adapter_folder(published))
    odd = small.home.adapters / "zest" / "old"
    odd.mkdir()
    (odd / "manifest.json").write_text("{}")
    flip(small.home.adapter_folder(damaged) / "adapter_model.safetensors")
    arguments = ["backup", str(tmp_path / "backup"), "--home", str(small.home.root), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert set(said["left_out"]) == {retired, published, damaged, "zest@old"}
    assert "hash to" in said["left_out"][damaged]
    assert len(said["versions"]) == 2
    check_backup(tmp_path / "backup", lambda *_: None)
    assert set(small.back_up(tmp_path / "backup").lacking) == {published, damaged, "zest@old"}


def test_a_version_that_was_damaged_later_is_saved_as_it_was(small: Place, elsewhere: Place, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    version = small.back_up(folder).new[0]
    whole = small.files()
    weights = small.home.adapter_folder(version) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    taken = small.back_up(folder)
    assert (taken.lacking, taken.new) == ((), ())
    shutil.rmtree(small.home.adapter_folder(version))
    assert small.back_up(folder).lacking == ()
    elsewhere.restore(folder)
    assert elsewhere.files() == whole


def test_versions_that_only_the_store_has_are_saved_and_go_back_into_a_store(
    small: Place, elsewhere: Place, tmp_path: Path
) -> None:
    stores = [AdapterStore(f"file://{tmp_path / name}", 1_000_000) for name in ("store", "new-store")]
    for name in ("store", "new-store"):
        (tmp_path / name).mkdir()
    whole = small.files()
    with small.opened() as database:
        versions = [row.id for row in Registry(database).versions()]
    for version in versions:
        stores[0].put(small.home.adapter_folder(version), version)
    shutil.rmtree(small.home.adapters)
    taken = back_up(small.home, dumper_for(small.url), stores[0], tmp_path / "backup", True, lambda *_: None)
    assert (sorted(taken.new), taken.lacking) == (sorted(versions), ())
    check_private(tmp_path / "backup")
    elsewhere.restore(tmp_path / "backup", stores[1])
    assert elsewhere.files() == whole
    for version in versions:
        assert stores[1].put(elsewhere.home.adapter_folder(version), version) is False  # it is there, whole


def test_a_folder_of_something_else_is_refused(small: Place, tmp_path: Path) -> None:
    for folder, code in (
        (small.home.root / "backup", "backup_in_home"),
        (tmp_path, "folder_not_empty"),
        (Path("/dev/null/backup"), "disk_error"),
    ):
        with pytest.raises(PolytoneError) as caught:
            small.back_up(folder)
        assert caught.value.code == code, folder
    assert not (small.home.root / "backup").exists()


def test_one_at_a_time(small: Place, elsewhere: Place, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    small.back_up(folder)
    with exclusive_lock(folder / ".backup.lock"), pytest.raises(PolytoneError) as caught:
        small.back_up(folder)
    assert caught.value.code == "already_running"
    elsewhere.home.root.mkdir()
    (elsewhere.home.root / ".restoring").mkdir()
    with exclusive_lock(elsewhere.home.root / ".restoring" / "lock"), pytest.raises(PolytoneError) as caught:
        elsewhere.restore(folder)
    assert caught.value.code == "already_running"
    elsewhere.restore(folder)


def test_a_restore_into_another_home_names_the_command_that_serves_it(
    small: Place, elsewhere: Place, tmp_path: Path
) -> None:
    """It once said `polytone serve`, which starts the live home."""
    small.back_up(tmp_path / "backup")
    arguments = ("restore", str(tmp_path / "backup"), "--home", str(elsewhere.home.root))
    done = polytone(*arguments, home=small.home.root, POLYTONE_DATABASE_URL=elsewhere.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"Then start the server: POLYTONE_HOME={elsewhere.home.root} polytone serve"


def test_no_database_and_a_damaged_one_are_told_apart(small: Place, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    small.back_up(folder)
    before = (folder / MANIFEST_NAME).read_bytes()
    database = small.home.root / "polytone.db"
    whole = database.read_bytes()
    database.write_bytes(whole[:100] + b"\xff" * 5000 + whole[5100:])
    with pytest.raises(PolytoneError) as caught:
        small.back_up(folder)
    assert caught.value.code == "database_damaged"
    database.unlink()
    with pytest.raises(PolytoneError) as caught:
        small.back_up(folder)
    assert caught.value.code == "database_not_found"
    assert (folder / MANIFEST_NAME).read_bytes() == before
    check_backup(folder, lambda *_: None)


def test_the_commands_say_what_they_did_and_what_to_do_next(small: Place, tmp_path: Path) -> None:
    runner, folder, home = CliRunner(), str(tmp_path / "backup"), str(tmp_path / "elsewhere")
    done = runner.invoke(app, ["backup", folder, "--no-bases", "--home", str(small.home.root)])
    assert (done.exit_code, "versions: 2 new, in all 2" in done.stdout) == (0, True), done.output
    done = runner.invoke(app, ["restore", folder, "--check"])
    assert (done.exit_code, f"The backup in {folder} is whole." in done.stdout) == (0, True), done.output
    done = runner.invoke(app, ["restore", folder, "--home", home])
    assert done.exit_code == 0, done.output
    assert "Prepare the base tiny again" in done.stdout
    assert "polytone serve" in done.stdout
    done = runner.invoke(app, ["restore", folder, "--home", home, "--json"])
    assert isinstance(done.exception, PolytoneError)
    assert (done.exception.code, done.exception.exit_code) == ("home_not_empty", 2)
    done = runner.invoke(app, ["restore", folder, "--home", f"{home}-2", "--json"])
    said = json.loads(done.stdout)
    assert [base["id"] for base in said["bases_to_prepare"]] == ["tiny"]
    assert said["database"]["rows"]["feedback"] == 1
