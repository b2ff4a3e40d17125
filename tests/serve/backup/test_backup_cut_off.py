"""A backup or restore that is killed at any moment: the backup before it stands, and the same command again does it."""

import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from polytone.contract.base import load_base
from polytone.contract.errors import PolytoneError
from polytone.contract.home import Home
from polytone.serve.adapters.registry import Registry
from polytone.serve.backup.checking import check_backup
from polytone.serve.backup.manifest import MANIFEST_NAME, read_backup
from polytone.serve.traffic.conversations import Conversations
from polytone.serve.traffic.schemas import TurnBody
from tests.support.adapters import make_version
from tests.support.postgresql import Postgresql

from .test_backup import Place, here, small

__all__ = ["here", "small"]

pytestmark = pytest.mark.slow

TOUCHES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "subprocess.Popen", "sqlite3.connect"}
TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT
KILLED, FAILED = 9, 1


def killed_at(moment: int, work: Callable[..., Any]) -> bool:
    """Do `work` in a process that ends without a word before its touch of the disk number `moment`; whether it did."""
    child = os.fork()
    if child == 0:
        left = moment

        def touch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event in TOUCHES or (event == "open" and arguments[2] & TO_WRITE):
                left -= 1
            if left < 0:
                os._exit(KILLED)

        sys.addaudithook(touch)
        try:
            work(tell=lambda *_: touch("os.rename", ()))
        except BaseException:
            os._exit(FAILED)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status != FAILED, moment
    return status == KILLED


@pytest.mark.soak
def test_a_backup_that_is_killed_leaves_the_one_before(small: Place, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("polytone.serve.backup.sqlite.PAGES", 10)
    good = tmp_path / "good"
    small.back_up(good)
    for seed in (11, 12):
        version = make_version(small.home, load_base(small.home, "tiny"), "acme", seed).version
        with small.opened() as database:
            Registry(database).publish(version, "test")
    before = (good / MANIFEST_NAME).read_bytes()
    for moment in count():
        folder = tmp_path / f"backup-{moment}"
        shutil.copytree(good, folder)
        if not killed_at(moment, partial(small.back_up, folder)):
            break
        check_backup(folder, lambda *_: None)
        whole = (folder / MANIFEST_NAME).read_bytes() != before
        assert len(small.back_up(folder).new) == (0 if whole else 2), moment
        check_tidy(folder)
        shutil.rmtree(folder)
    print(f"killed at {moment} moments")
    assert moment > 50


@pytest.mark.soak
def test_a_first_backup_that_is_killed_is_none_and_can_be_made_again(small: Place, tmp_path: Path) -> None:
    for moment in count():
        folder = tmp_path / f"backup-{moment}"
        if not killed_at(moment, partial(small.back_up, folder)):
            break
        if not (folder / MANIFEST_NAME).exists():
            with pytest.raises(PolytoneError) as caught:
                check_backup(folder, lambda *_: None)
            assert caught.value.code == "backup_not_found"
        small.back_up(folder)
        check_tidy(folder)
        shutil.rmtree(folder)
    print(f"killed at {moment} moments")
    assert moment > 50


def check_tidy(folder: Path) -> None:
    """Nothing is there twice, half or left over, and what is there is right."""
    backup = check_backup(folder, lambda *_: None)
    named = {folder / MANIFEST_NAME, folder / ".backup.lock", folder / backup.database.file}
    named |= {folder / stored.folder / name for _, stored in backup.folders() for name in stored.files}
    assert {path for path in folder.rglob("*") if path.is_file()} == named
    assert [stored.folder for _, stored in backup.folders()] == [place for place, _ in backup.folders()]


@pytest.mark.soak
def test_a_restore_that_is_killed_is_done_by_the_same_command(small: Place, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    small.back_up(folder)
    for moment in count():
        home = Home(tmp_path / f"home-{moment}")
        place = Place(home, home.database_url)
        if not killed_at(moment, partial(place.restore, folder)):
            break
        check_done(place, small, folder)
        shutil.rmtree(home.root)
    print(f"killed at {moment} moments")
    assert moment > 50


@pytest.mark.soak
def test_a_restore_into_postgresql_that_is_killed_is_done_by_the_same_command(
    small: Place, postgresql: Postgresql, tmp_path: Path
) -> None:
    """pg_restore itself may live on and end its work; then the same command finds that it is done."""
    folder, version = tmp_path / "backup", small.back_up(tmp_path / "other").new[0]
    there = Place(small.home, postgresql.migrated())
    with there.opened() as database:
        Registry(database).publish(version, "test")
    there.back_up(folder)
    for moment in count(step=3):  # a new database for each takes its time
        home = Home(tmp_path / f"home-{moment}")
        place = Place(home, postgresql.empty())
        if not killed_at(moment, partial(place.restore, folder)):
            break
        check_done(place, there, folder)
        shutil.rmtree(home.root)
    print(f"killed at {moment // 3} moments")
    assert moment > 50


def check_done(place: Place, source: Place, folder: Path) -> None:
    """The same command ends what was begun, and says so where nothing but tidying was left."""
    if (place.home.root / ".restoring" / MANIFEST_NAME).exists() or not place.home.adapters.exists():
        restore_patiently(place, folder)
        assert not (place.home.root / ".restoring").exists()
    else:
        with pytest.raises(PolytoneError) as caught:
            place.restore(folder)
        assert caught.value.code == "home_not_empty"
        shutil.rmtree(place.home.root / ".restoring", ignore_errors=True)
    assert (place.files(), place.rows()) == (source.files(), source.rows())
    assert {path.name for path in place.home.root.iterdir()} - {"polytone.db"} == {"adapters", "bases", "evaluations"}


def restore_patiently(place: Place, folder: Path) -> None:
    while True:
        try:
            place.restore(folder)
            return
        except PolytoneError as error:
            if error.code != "dump_failed":  # the one that lives on was faster
                raise


def test_a_full_disk_is_named_and_leaves_the_backup_before(small: Place, tmp_path: Path) -> None:
    """Here no file may be larger than so much; the kernel says so as it says that a disk is full."""
    folder = tmp_path / "backup"
    small.back_up(folder)
    before = (folder / MANIFEST_NAME).read_bytes()
    with small.opened() as database:
        conversations = Conversations(database)
        kept = conversations.create("ann").row.id
        conversations.add("ann", kept, TurnBody(role="user", content="x" * 1_000_000))
    home = Home(tmp_path / "elsewhere")
    for work, named in ((small.back_up, folder), (Place(home, home.database_url).restore, home.root)):
        said = refusal_of(partial(work, folder), largest_file=1_000_000)
        assert said.startswith(f"disk_error: Cannot write {named}"), said
        assert not home.root.exists()
        check_tidy(folder)
        assert (folder / MANIFEST_NAME).read_bytes() == before
        small.back_up(folder)
        before = (folder / MANIFEST_NAME).read_bytes()


def refusal_of(work: Callable[[], Any], largest_file: int) -> str:
    """What `work` says in a process that may write no larger file."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        said = "done"
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        try:
            work()
        except PolytoneError as error:
            said = f"{error.code}: {error.message}"
        except BaseException as error:
            said = repr(error)
        os.write(write_end, said.encode())
        os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end) as said_by_child:
        return said_by_child.read()


def test_a_home_half_restored_from_another_backup_is_not_mixed(small: Place, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    small.back_up(one)
    small.back_up(other)
    home = Home(tmp_path / "home")
    place = Place(home, home.database_url)
    for moment in count():
        assert killed_at(moment, partial(place.restore, one))
        if (home.root / ".restoring" / MANIFEST_NAME).exists():
            break
        shutil.rmtree(home.root, ignore_errors=True)
    with pytest.raises(PolytoneError) as caught:
        place.restore(other)
    assert caught.value.code == "restore_unfinished"
    assert read_backup(one) == place.restore(one).backup
    assert place.rows() == small.rows()


def test_a_server_that_started_meanwhile_is_in_the_way(small: Place, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    small.back_up(folder)
    home = Home(tmp_path / "home")
    place = Place(home, home.database_url)
    for moment in count():
        assert killed_at(moment, partial(place.restore, folder))
        if home.adapters.exists():
            break
        shutil.rmtree(home.root, ignore_errors=True)
    with place.opened():
        pass  # as a server does at its start
    with pytest.raises(PolytoneError) as caught:
        place.restore(folder)
    assert (caught.value.code, "polytone.db" in caught.value.message) == ("database_not_empty", True)
    (home.root / "polytone.db").unlink()
    place.restore(folder)
    assert place.rows() == small.rows()
