"""The adapter store: what one replica takes, every replica fetches, whole and checked or not at all."""

import asyncio
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from polytone.contract.adapter import CARD, CONFIG, EVALUATION, FILES, WEIGHTS, list_versions, read_version
from polytone.contract.errors import CheckError, InputError, NotFoundError, UnavailableError
from polytone.contract.home import Home
from polytone.contract.manifest import MANIFEST, Manifest
from polytone.contract.version_id import VersionId, voice_of
from polytone.serve.adapters import loaded
from polytone.serve.adapters.archive import pack_version
from polytone.serve.adapters.fetch import Fetcher, fetch_version, in_daemon_thread, same_files
from polytone.serve.adapters.store import AdapterStore, open_store
from polytone.serve.adapters.validation import ServedBase
from polytone.serve.database.audit import read_audit
from polytone.serve.metrics import Metrics
from polytone.serve.server import build_services
from polytone.serve.settings import Settings
from tests.support.adapters import change_manifest, make_base, make_version
from tests.support.processes import polytone
from tests.support.serving import Server, database_url, eventually, serving

LIMIT = 200_000
OUTSIDE = "outside-the-store"
MANY = 6  # more than are fetched at once, and more than answer at once
ROOT = Path(__file__).parents[3]


class TroubledFiles(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A folder that can go away, and that keeps those waiting who read a file whose path holds `stuck`."""

    protocol = "troubled"
    away = False
    stuck: str | None = None
    reached: ClassVar[threading.Event]
    go_on: ClassVar[threading.Event]
    written: ClassVar[list[str]]

    def info(self, path: str, **more: Any) -> Any:
        self._check()
        return super().info(path, **more)

    def put_file(self, path1: str, path2: str, callback: Any = None, **more: Any) -> None:
        self._check()
        self.written.append(path2)
        super().put_file(path1, path2, callback, **more)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **more: Any) -> Any:
        self._check()
        if self.stuck is not None and self.stuck in path:
            self.reached.set()
            assert self.go_on.wait(60)
        return super()._open(path, mode, block_size, **more)

    def _check(self) -> None:
        if self.away:
            raise ConnectionError("no answer to user:hunter2 from troubled://user:hunter2@host/voices?sig=s3cret")


class Objects(AsyncFileSystemWrapper):  # type: ignore[misc]
    """An object store: there are no folders, and what is put appears at once."""

    protocol = "objects"

    def __init__(self, **options: Any) -> None:
        super().__init__(MemoryFileSystem(), **options)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise PermissionError(f"{path}: no bucket may be made")

    def _open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        return self.sync_fs.open(path, mode)


@pytest.fixture(autouse=True)
def file_systems(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for kind in (TroubledFiles, Objects):
        fsspec.register_implementation(kind.protocol, kind, clobber=True)
    for name, value in {"reached": threading.Event(), "go_on": threading.Event(), "written": []}.items():
        monkeypatch.setattr(TroubledFiles, name, value, raising=False)
    monkeypatch.setattr(loaded, "FIRST_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(loaded, "LAST_RETRY_SECONDS", 0.2)
    yield
    TroubledFiles.go_on.set()
    for thread in threading.enumerate():
        if thread.name == "adapter store":
            thread.join(30)
    MemoryFileSystem.store.clear()


class Trainer:
    """A machine where versions are made; it serves none."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root / "trainer")
        self.base = make_base(self.home)

    def make(self, name: str, seed: int = 0, **changes: Any) -> Manifest:
        return make_version(self.home, self.base, name, seed, **changes)

    def folder(self, manifest: Manifest) -> Path:
        return self.home.adapter_folder(manifest.version)

    def put(self, store: AdapterStore, *names: str) -> list[str]:
        manifests = [self.make(name) for name in names]
        for manifest in manifests:
            store.put(self.folder(manifest), manifest.version)
        return [manifest.version for manifest in manifests]

    def archive(self, manifest: Manifest) -> bytes:
        target = self.home.root / "version.tar.gz"
        pack_version(self.home, manifest.version, target)
        return target.read_bytes()


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(tmp_path)


def served_at(root: Path) -> ServedBase:
    """A home that has the base and no version."""
    home = Home(root)
    return ServedBase(home, make_base(home), 16)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """The folder behind a store of files."""
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@asynccontextmanager
async def replicas(root: Path, url: str) -> AsyncIterator[tuple[Server, Server]]:
    """Two servers with a home of their own each, one database and one store."""
    (root / "shared").mkdir()
    database = database_url(Home(root / "shared"))
    async with (
        serving(root / "a", store=AdapterStore(url, LIMIT), shared_database=database) as a,
        serving(root / "b", store=AdapterStore(url, LIMIT), shared_database=database) as b,
    ):
        yield a, b


async def upload(server: Server, name: str, content: bytes) -> Any:
    return await server.client.post(f"/admin/adapters/{name}/versions", content=content)


async def until_answered(server: Server, manifest: Manifest) -> None:
    await eventually(lambda: server.answers(manifest.name) == manifest.version)
    await server.until_ready(manifest.version)


async def until_reason(server: Server, version: str, *parts: str) -> None:
    """Wait until the reason for which it failed has all `parts`."""
    await eventually(lambda: all(part in reason(server, version) for part in parts))


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> list[bytes]:
    """Of every file under it."""
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


def reason(server: Server, version: str) -> str:
    return server.services.adapters.states().get(version, ("", None))[1] or ""


def fetches(server: Server) -> tuple[float, float]:
    """The numbers of fetches that brought a version, and that failed."""
    value = server.services.metrics.registry.get_sample_value
    done, failed = (value("polytone_adapter_fetches_total", {"result": result}) for result in ("fetched", "failed"))
    return done or 0.0, failed or 0.0


@pytest.mark.parametrize("url", ["file://{}", "memory://voices", "objects://bucket/voices", "{}"])
async def test_what_one_replica_takes_another_fetches_and_answers(
    tmp_path: Path, shelf: Path, trainer: Trainer, url: str
) -> None:
    acme, zest = trainer.make("acme"), trainer.make("zest")
    async with replicas(tmp_path, url.format(shelf)) as (a, b):
        for server, manifest in ((a, acme), (b, zest)):
            response = await upload(server, manifest.name, trainer.archive(manifest))
            assert (response.status_code, response.json()) == (201, {"version": manifest.version, "created": True})
            rollout = {"versions": [{"version": manifest.version}]}
            done = await server.client.put(f"/admin/adapters/{manifest.name}/rollout", json=rollout)
            assert done.status_code == 200, done.text
        for server in (a, b):
            for manifest in (acme, zest):
                await until_answered(server, manifest)
                assert (await server.chat(manifest.name)).json()["model"] == manifest.version
                assert same_files(server.home.adapter_folder(manifest.version), trainer.folder(manifest))
        assert fetches(a) == fetches(b) == (1, 0)
        assert b.services.metrics.registry.get_sample_value("polytone_adapter_fetch_seconds_count") == 1


Damage = tuple[str, Callable[[Path], None], list[str]]  # a voice, what is done to it in the store, what is said of it


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


def without(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def link(folder: Path) -> None:
    """To a file outside the store, of the test's own: a fault in what is tested must not reach the machine's."""
    outside = folder.parents[2] / OUTSIDE
    outside.write_text("private")
    (folder / CARD).unlink()
    (folder / CARD).symlink_to(outside)


def link_all(folder: Path) -> None:
    elsewhere = folder.parents[2] / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)


def pipe(folder: Path) -> None:
    (folder / CARD).unlink()
    os.mkfifo(folder / CARD)


def other_base(folder: Path) -> None:
    """Nothing but the manifest needs to be there to know it."""
    base = json.loads((folder / MANIFEST).read_text())["base"]
    change_manifest(folder, base={**base, "digest": "c" * 64})
    without(WEIGHTS)(folder)


DAMAGES: list[Damage] = [
    (
        "flipped",
        rewrite(WEIGHTS, lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        ["its files hash to", "its manifest says", "publish flipped@"],
    ),
    ("cut", rewrite(WEIGHTS, lambda b: b[: len(b) // 2]), [WEIGHTS, "bytes, more or fewer than its header describes"]),
    ("pickled", rewrite(WEIGHTS, lambda _: pickle.dumps({"a": 1})), [WEIGHTS, "it is a pickle"]),
    ("huge", rewrite(WEIGHTS, lambda b: b + bytes(LIMIT)), [str(LIMIT), "POLYTONE_MAX_UPLOAD_BYTES"]),
    ("headless", without(MANIFEST), ["is not in the adapter store", "polytone adapters publish headless@"]),
    ("gone", without(WEIGHTS, CARD), ["lacks README.md, adapter_model.safetensors"]),
    ("garbled", rewrite(MANIFEST, lambda b: b[: len(b) // 2]), [MANIFEST]),
    ("renamed", lambda folder: change_manifest(folder, name="zest"), ["is of zest@", "not renamed@"]),
    ("configured", rewrite(CONFIG, lambda b: b.replace(b"8", b"9")), ["its files hash to"]),
    ("foreign", other_base, ["was trained on tiny", "Train it again on this base"]),
    ("linked", link, ["README.md: is not a regular file"]),
    ("led", link_all, ["is a link that leads elsewhere"]),
    ("piped", pipe, ["README.md: is not a regular file"]),
]


async def test_each_damage_in_the_store_fails_its_version_alone_until_it_is_published_again(
    tmp_path: Path, shelf: Path, trainer: Trainer
) -> None:
    store = AdapterStore(shelf.as_uri(), LIMIT)
    bad = dict(zip([name for name, _, _ in DAMAGES], trainer.put(store, *(d[0] for d in DAMAGES)), strict=True))
    (good,) = trainer.put(store, "zest")
    for name, change, _ in DAMAGES:
        change(Path(store.place(bad[name]).removeprefix("file://")))
    async with serving(tmp_path / "b", store=store) as server:
        for version in (*bad.values(), good):
            server.registry.publish(version, "test")
        await server.until_ready(good)
        for name, _, says in DAMAGES:
            await eventually(lambda version=bad[name]: server.state(version) == "failed")
            why = reason(server, bad[name])
            assert all(part in why for part in says), (name, why)
            assert (str(server.home.root) in why, store.place(bad[name]) in why or bad[name] in why) == (False, True)
        assert "lacks" not in reason(server, bad["foreign"])  # its weights were not asked for
        assert list_versions(server.home) == [good]
        assert (await server.chat(good)).status_code == 200
        assert (await server.chat(bad["cut"])).json()["error"]["code"] == "voice_not_ready"
        assert server.engine.loads == 1
        with pytest.raises(CheckError, match="is a link that leads elsewhere"):
            store.put(trainer.home.adapter_folder(bad["led"]), bad["led"])
        (shelf / bad["led"].replace("@", "/")).unlink()
        for version in bad.values():
            assert store.put(trainer.home.adapter_folder(version), version) is True
        await server.until_ready(*bad.values())
        assert (tmp_path / OUTSIDE).read_text() == "private"


async def test_the_reason_names_the_digest_that_was_expected_and_the_one_that_was_found(
    tmp_path: Path, shelf: Path, trainer: Trainer
) -> None:
    store = AdapterStore(shelf.as_uri(), LIMIT)
    acme, zest = trainer.make("acme", 1), trainer.make("acme", 2)
    store.put(trainer.folder(acme), acme.version)
    weights = (trainer.folder(zest) / WEIGHTS).read_bytes()
    (shelf / "acme" / acme.digest[:12] / WEIGHTS).write_bytes(weights)
    with pytest.raises(CheckError) as refused:
        fetch_version(store, acme.version, served_at(tmp_path / "b"))
    assert refused.value.code == "wrong_digest"
    assert f"its files hash to {zest.digest[:12]}, its manifest says {acme.digest[:12]}" in refused.value.message


async def test_nothing_but_a_versions_files_is_taken(tmp_path: Path, trainer: Trainer) -> None:
    store, memory = AdapterStore("memory://voices", LIMIT), MemoryFileSystem()
    (version,) = trainer.put(store, "acme")
    folder = f"/voices/{VersionId.parse(version).path}"
    for name in (
        "adapter_model.bin",
        "run.py",
        ".hidden",
        "../evil",
        "../../../evil",
        "sub/evil",
        "reference.jsonl",
        EVALUATION,
    ):
        memory.pipe_file(f"{folder}/{name}", b"evil")
    served = served_at(tmp_path / "b")
    fetch_version(store, version, served)
    assert names_in(served.home.adapter_folder(version)) == FILES
    assert b"evil" not in contents(tmp_path)


def test_a_store_that_changes_while_it_is_read_gives_no_more_than_the_limit(tmp_path: Path, trainer: Trainer) -> None:
    """What a file system says of a size is not believed."""
    store = AdapterStore("memory://voices", LIMIT)
    (version,) = trainer.put(store, "acme")
    small = AdapterStore(
        "memory://voices", sum(p.stat().st_size for p in trainer.home.adapter_folder(version).iterdir())
    )
    folder = tmp_path / "whole"
    folder.mkdir()
    small.copy_out(version, folder)
    assert names_in(folder) == FILES
    memory = MemoryFileSystem()
    card = f"/voices/{VersionId.parse(version).path}/{CARD}"
    memory.pipe_file(card, memory.cat_file(card) + b"x")
    again = tmp_path / "again"
    again.mkdir()
    with pytest.raises(CheckError) as refused:
        small.copy_out(version, again)
    assert refused.value.code == "version_too_large"
    with pytest.raises(CheckError) as refused:
        AdapterStore("memory://voices", 100).put(trainer.home.adapter_folder(version), version)
    assert refused.value.code == "version_too_large"


async def test_an_upload_while_the_store_is_away_records_nothing_and_works_once_it_is_back(
    tmp_path: Path, shelf: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = trainer.make("acme")
    content = trainer.archive(manifest)
    async with replicas(tmp_path, f"troubled://{shelf}") as (a, b):
        monkeypatch.setattr(TroubledFiles, "away", True)
        refused = await upload(a, "acme", content)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
        assert ("POLYTONE_ADAPTER_STORE" in refused.text, "retry-after" in refused.headers) == (True, True)
        assert (a.registry.versions(), read_audit(a.services.database, 9), list_versions(a.home)) == ([], [], [])
        assert contents(shelf) == []
        assert (await a.chat("tiny")).status_code == 200
        monkeypatch.setattr(TroubledFiles, "away", False)
        assert (await upload(a, "acme", content)).status_code == 201
        await b.until_ready(manifest.version)


async def test_a_version_that_cannot_be_fetched_fails_until_the_store_is_back_and_others_answer(
    tmp_path: Path, shelf: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AdapterStore(f"troubled://{shelf}", LIMIT)
    (version,) = trainer.put(store, "acme")
    async with serving(tmp_path / "b", store=store) as server:
        local = await server.voice("zest")
        monkeypatch.setattr(TroubledFiles, "away", True)
        server.registry.publish(version, "test")
        server.registry.promote("acme", version, "test")
        await eventually(lambda: fetches(server)[1] >= 2)
        assert "cannot be used now" in reason(server, version)
        assert server.supervisor.ready()
        assert (await server.chat("acme")).json()["error"]["code"] == "voice_not_ready"
        assert (await server.chat("zest")).json()["model"] == local
        monkeypatch.setattr(TroubledFiles, "away", False)
        await eventually(lambda: server.answers("acme") == version)
        assert (await server.chat("acme")).json()["model"] == version


async def test_what_could_not_be_fetched_is_not_loaded(
    tmp_path: Path, shelf: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that noticed a failed fetch after the time of the next try went on, and reported missing files."""
    monkeypatch.setattr(loaded, "FIRST_RETRY_SECONDS", 0.0)
    store = AdapterStore(f"troubled://{shelf}", LIMIT)
    (version,) = trainer.put(store, "acme")
    async with serving(tmp_path / "b", store=store) as server:
        monkeypatch.setattr(TroubledFiles, "away", True)
        server.registry.publish(version, "test")
        await eventually(lambda: server.state(version) == "failed")
        reasons = set()
        while fetches(server)[1] < 5:
            reasons.add(reason(server, version))
            await asyncio.sleep(0.001)  # not 0: a loop that never rests starves the thread that fetches
        assert all("cannot be used now" in one for one in reasons), reasons


async def test_a_store_that_keeps_everyone_waiting_holds_up_nobody_else(
    tmp_path: Path, shelf: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many versions wait for the store as could answer at once: none of them has taken a turn from the others."""
    store = AdapterStore(f"troubled://{shelf}", LIMIT)
    slow = trainer.put(store, *(f"slow{number}" for number in range(MANY)))
    async with serving(tmp_path / "b", store=store, max_batch=2) as server:
        monkeypatch.setattr(TroubledFiles, "stuck", "/slow")
        for version in slow:
            server.registry.publish(version, "test")
        assert await asyncio.to_thread(TroubledFiles.reached.wait, 30)
        quick = [await server.voice(name) for name in ("acme", "zest", "mint")]
        answers = await asyncio.gather(*(server.chat(name) for name in ("acme", "zest", "mint", "tiny") * 3))
        assert {answer.json()["model"] for answer in answers} == {*quick, "tiny"}
        second = server.add("acme", seed=2)
        server.registry.promote("acme", second, "test")
        await eventually(lambda: server.answers("acme") == second)
        assert {server.state(version) for version in slow} == {"loading"}
        TroubledFiles.go_on.set()
        await server.until_ready(*slow)


async def test_one_version_that_the_store_keeps_back_does_not_keep_others_from_coming(
    tmp_path: Path, shelf: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AdapterStore(f"troubled://{shelf}", LIMIT)
    slow, *others = trainer.put(store, "acme", *(f"voice{number}" for number in range(MANY)))
    async with serving(tmp_path / "b", store=store) as server:
        monkeypatch.setattr(TroubledFiles, "stuck", "/acme/")
        server.registry.publish(slow, "test")
        assert await asyncio.to_thread(TroubledFiles.reached.wait, 30)
        for version in others:
            server.registry.publish(version, "test")
        await server.until_ready(*others)
        assert server.state(slow) == "loading"


async def test_a_request_waits_so_long_for_a_fetch_and_the_fetch_goes_on(
    tmp_path: Path, shelf: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More is published than fits in memory: what was never asked for is fetched when it is."""
    store = AdapterStore(f"troubled://{shelf}", LIMIT)
    (version,) = trainer.put(store, "acme")
    async with serving(tmp_path / "b", store=store, max_resident=1) as server:
        await server.voice("zest")
        server.registry.publish(version, "test")
        await eventually(lambda: server.state(version) == "published")
        monkeypatch.setattr(TroubledFiles, "stuck", "/acme/")
        adapter = server.services.adapters.route(version).adapter
        assert adapter is not None
        for _ in range(2):
            with pytest.raises(UnavailableError, match="is being fetched from the adapter store") as refused:
                await server.services.adapters.acquire(adapter, patience=0.01)
            assert refused.value.code == "voice_not_ready"
        waiting = asyncio.create_task(server.chat(version))
        TroubledFiles.go_on.set()
        assert (await waiting).json()["model"] == version
        assert fetches(server) == (1, 0)


async def test_a_store_that_never_answers_is_away_after_a_while(
    tmp_path: Path, shelf: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AdapterStore(f"troubled://{shelf}", LIMIT)
    (version,) = trainer.put(store, "acme")
    monkeypatch.setattr(TroubledFiles, "stuck", WEIGHTS)
    monkeypatch.setattr("polytone.serve.adapters.fetch.FETCH_SECONDS", 0.05)
    served, metrics = served_at(tmp_path / "b"), Metrics()
    fetcher = Fetcher(store, served, metrics)
    for _ in range(MANY):  # each gives its place to the next
        with pytest.raises(UnavailableError, match=f"did not give {version}") as refused:
            await fetcher.fetch(version)
        assert refused.value.code == "store_unavailable"
    assert metrics.registry.get_sample_value("polytone_adapter_fetches_total", {"result": "failed"}) == MANY
    TroubledFiles.go_on.set()
    await eventually(lambda: list_versions(served.home) == [version])


async def test_a_damaged_copy_here_is_fetched_again(
    tmp_path: Path, shelf: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AdapterStore(f"troubled://{shelf}", LIMIT)
    versions = trainer.put(store, "acme", "zest", "mint")
    async with serving(tmp_path / "b", store=store) as server:
        for version in versions:
            server.registry.publish(version, "test")
        await server.until_ready(*versions)
        cut, half, lying = (server.home.adapter_folder(version) for version in versions)
        (cut / WEIGHTS).write_bytes((cut / WEIGHTS).read_bytes()[:-3])
        (half / MANIFEST).unlink()
        probes = json.loads((lying / MANIFEST).read_text())["fingerprint"]
        probes["probes"][0]["tokens"] = [5, 6]
        change_manifest(lying, fingerprint=probes)
        monkeypatch.setattr(TroubledFiles, "away", True)
        server.engine.up = False  # what is loaded again is checked again
        for version, says in zip(
            versions,
            (["header describes", "cannot be used now"], ["cannot be used now"], ["does not serve what was trained"]),
            strict=True,
        ):
            await until_reason(server, version, *says)
        monkeypatch.setattr(TroubledFiles, "away", False)
        await server.until_ready(*versions)
        for version in versions:
            assert same_files(server.home.adapter_folder(version), trainer.home.adapter_folder(version))
            assert names_in(server.home.adapters / voice_of(version)) == {VersionId.parse(version).digest}


async def test_without_better_files_in_the_store_those_that_are_here_are_tried_again(
    tmp_path: Path, shelf: Path
) -> None:
    """An engine that failed for a moment must not need a store to be forgiven."""
    async with serving(tmp_path / "b", store=AdapterStore(shelf.as_uri(), LIMIT)) as server:
        server.engine.wrong = True
        version = server.add("acme")
        await eventually(lambda: fetches(server)[1] >= 1)
        server.engine.wrong = False
        await server.until_ready(version)


async def test_an_engine_that_serves_something_else_does_not_fetch_for_ever(
    tmp_path: Path, shelf: Path, trainer: Trainer
) -> None:
    store = AdapterStore(shelf.as_uri(), LIMIT)
    (version,) = trainer.put(store, "acme")
    async with serving(tmp_path / "b", store=store) as server:
        server.engine.wrong = True
        server.registry.publish(version, "test")
        failed = "polytone_adapter_loads_total", {"result": "failed"}
        await eventually(lambda: (server.services.metrics.registry.get_sample_value(*failed) or 0) >= 3)
        assert fetches(server) == (1, 0)


async def test_the_first_who_publishes_a_digest_says_what_it_is(tmp_path: Path, shelf: Path, trainer: Trainer) -> None:
    """The same weights with another system prompt have the same digest: every replica answers with the first one."""
    first = trainer.make("acme", system_prompt="Be brief.")
    other = Trainer(tmp_path / "other")
    second = other.make("acme", system_prompt="Ramble.")
    assert first.version == second.version
    async with replicas(tmp_path, shelf.as_uri()) as (a, b):
        for server, content in ((a, trainer.archive(first)), (b, other.archive(second))):
            assert (await upload(server, "acme", content)).status_code == 201
        for server in (a, b):
            await server.until_ready(first.version)
            assert read_version(server.home, first.version).system_prompt == "Be brief."


def test_what_is_in_the_store_is_not_written_again(shelf: Path, trainer: Trainer) -> None:
    store = AdapterStore(f"troubled://{shelf}", LIMIT)
    manifest = trainer.make("acme")
    assert store.put(trainer.folder(manifest), manifest.version) is True
    written = len(TroubledFiles.written)
    assert (written, MANIFEST in TroubledFiles.written[-1]) == (len(FILES), True)
    assert store.put(trainer.folder(manifest), manifest.version) is False
    assert len(TroubledFiles.written) == written


async def test_many_may_publish_and_fetch_one_version_at_once(tmp_path: Path, shelf: Path, trainer: Trainer) -> None:
    store = AdapterStore(shelf.as_uri(), LIMIT)
    manifest = trainer.make("acme")
    stored = shelf / "acme" / manifest.digest[:12]
    await asyncio.gather(*(in_daemon_thread(store.put, trainer.folder(manifest), manifest.version) for _ in range(8)))
    assert names_in(stored) == FILES
    served = served_at(tmp_path / "b")
    home = served.home
    fetching = asyncio.gather(*(in_daemon_thread(fetch_version, store, manifest.version, served) for _ in range(8)))
    while not fetching.done():
        assert set(list_versions(home)) <= {manifest.version}  # who looks meanwhile sees nothing else, and no error
        await asyncio.sleep(0)
    await fetching
    assert names_in(home.adapters / "acme") == {manifest.digest[:12]}
    assert same_files(home.adapter_folder(manifest.version), stored)


# The command line over a folder in which one file stops half-way, when it is written or read.
STOPPING = """
import sys, time
from pathlib import Path
import fsspec
from fsspec.implementations.local import LocalFileSystem

how, where = sys.argv[1:3]

class Stopping(LocalFileSystem):
    protocol = "stopping"

    def put_file(self, source, target, callback=None, **more):
        if how == "write" and where in target:
            content = Path(source).read_bytes()
            Path(target).write_bytes(content[:len(content) // 2])
            self.stop()
        super().put_file(source, target, callback, **more)

    def _open(self, path, mode="rb", **more):
        file = super()._open(path, mode, **more)
        if how == "read" and where in path:
            file.read = lambda size, read=file.read: read(50) if not file.tell() else self.stop()
        return file

    def stop(self):
        print("stopped", flush=True)
        time.sleep(600)

fsspec.register_implementation("stopping", Stopping)
from polytone.cli.main import main
sys.argv = ["polytone", *sys.argv[3:]]
main()
"""


def killed(home: Home, store: Path, how: str, where: str, *command: str) -> None:
    """Run a command until it has come to `where`, and kill it there."""
    environment = {**os.environ, "POLYTONE_HOME": str(home.root), "POLYTONE_BASE": "tiny"}
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPING, how, where, *command],
        env={**environment, "POLYTONE_ADAPTER_STORE": f"stopping://{store}"},
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "stopped\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize("where", [CONFIG, MANIFEST])
@pytest.mark.slow
def test_a_publisher_killed_half_way_has_published_nothing_and_the_next_completes_it(
    shelf: Path, trainer: Trainer, where: str
) -> None:
    version = trainer.make("acme").version
    stored = shelf / VersionId.parse(version).path
    killed(trainer.home, shelf, "write", where, "adapters", "publish", version)
    assert not (stored / MANIFEST).exists()
    assert [path.name for path in stored.iterdir() if path.name.startswith(f".{where}")]
    listed = json.loads(polytone("adapters", "list", "--json", home=trainer.home.root).stdout)
    assert [row["wanted"] for row in listed["versions"]] == ["on disk"]
    settings = {"POLYTONE_BASE": "tiny", "POLYTONE_ADAPTER_STORE": shelf.as_uri()}
    done = polytone("adapters", "publish", version, home=trainer.home.root, **settings)
    assert done.returncode == 0, done.stderr
    assert names_in(stored) == FILES
    assert same_files(stored, trainer.home.adapter_folder(version))


@pytest.mark.slow
def test_one_who_is_killed_while_fetching_leaves_no_part_of_a_version(
    tmp_path: Path, shelf: Path, trainer: Trainer
) -> None:
    (version,) = trainer.put(AdapterStore(shelf.as_uri(), LIMIT), "acme")
    home = Home(tmp_path / "b")
    make_base(home)
    killed(home, shelf, "read", WEIGHTS, "adapters", "show", version)
    assert list_versions(home) == []
    with pytest.raises(NotFoundError):
        read_version(home, version)
    settings = {"POLYTONE_BASE": "tiny", "POLYTONE_ADAPTER_STORE": shelf.as_uri()}
    done = polytone("adapters", "show", version, home=home.root, **settings)
    assert (done.returncode, json.loads(done.stdout)["name"]) == (0, "acme")
    assert f"Servers fetch it from {shelf.as_uri()}/{VersionId.parse(version).path}" in done.stderr
    assert list_versions(home) == [version]


@pytest.mark.slow
def test_the_command_line_publishes_to_the_store_first_or_not_at_all(
    tmp_path: Path, shelf: Path, trainer: Trainer
) -> None:
    version = trainer.make("acme").version
    settings = {"POLYTONE_BASE": "tiny", "POLYTONE_ADAPTER_STORE": shelf.as_uri(), "COLUMNS": "300"}

    def adapters(*words: str) -> Any:
        return polytone("adapters", *words, home=trainer.home.root, **settings)

    shelf.rename(tmp_path / "elsewhere")  # a volume that is not mounted
    done = adapters("publish", version)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert all(part in done.stderr for part in (shelf.as_uri(), "POLYTONE_ADAPTER_STORE", "mount the volume"))
    done = adapters("publish", version, "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (1, "store_unavailable")
    assert not shelf.exists()
    listed = json.loads(adapters("list", "--json").stdout)
    assert ([row["wanted"] for row in listed["versions"]], listed["store"]) == (["on disk"], shelf.as_uri())
    (tmp_path / "elsewhere").rename(shelf)
    done = adapters("publish", version)
    assert done.returncode == 0, done.stderr
    assert names_in(shelf / VersionId.parse(version).path) == FILES
    assert f"Servers fetch versions from {shelf.as_uri()} (POLYTONE_ADAPTER_STORE)." in adapters("list").stdout


def test_a_server_is_built_with_the_store_of_its_settings(
    tmp_path: Path, shelf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_base(Home(tmp_path))
    settings = Settings(home=tmp_path, base="tiny", adapter_store=f"{shelf.as_uri()}?key=s3cret")
    with caplog.at_level("INFO", logger="polytone.serve.server"):
        services = build_services(settings)
    services.database.dispose()
    assert str(services.store) == shelf.as_uri()
    assert f"adapter store: {shelf.as_uri()}; {tmp_path / 'adapters'} is its cache here" in caplog.messages
    assert "s3cret" not in caplog.text


def test_secrets_in_the_url_are_told_to_nobody(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TroubledFiles, "away", True)
    monkeypatch.setattr(TroubledFiles, "isdir", lambda _self, _path: True)
    store = AdapterStore("troubled://user:hunter2@host/voices?sig=s3cret", LIMIT)
    assert str(store) == "troubled://host/voices"
    assert store.place("acme@0123456789ab") == "troubled://host/voices/acme/0123456789ab"
    manifest = trainer.make("acme")
    with pytest.raises(UnavailableError) as refused:
        store.put(trainer.folder(manifest), manifest.version)
    message = refused.value.message
    assert "no answer" in message
    assert not any(secret in message for secret in ("hunter2", "s3cret", "user"))


def test_a_url_that_nothing_here_can_reach_is_refused_with_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        known_implementations, "faraway", {"class": "no_such_package.Files", "err": "Install no_such_package"}
    )
    for url, says in (("faraway://b/voices", "Install no_such_package"), ("what://b/voices", "Protocol not known")):
        with pytest.raises(InputError, match=says) as refused:
            open_store(url, LIMIT)
        assert (refused.value.code, "POLYTONE_ADAPTER_STORE" in refused.value.message) == ("settings_invalid", True)
    assert open_store(None, LIMIT) is None
    assert open_store("", LIMIT) is None
