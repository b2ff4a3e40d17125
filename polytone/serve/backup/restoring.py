"""Restore a backup into an empty home and an empty database.

Everything is copied into a hidden folder of the home and checked there. Then that folder is marked as complete, its
content is renamed into place, and the database follows last, so that every version it names is there before it. A
restore that was interrupted continues once the copy was complete, and starts over before that.
"""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polytone.contract.base import Base, base_folder, load_base
from polytone.contract.errors import ConflictError, InputError, PolytoneError
from polytone.contract.evaluation import verdict_path
from polytone.contract.files import flush_to_disk, write_whole
from polytone.contract.home import Home
from polytone.serve.adapters.store import AdapterStore

from .checking import Meter, check_revision, damages, refuse_if
from .dump import DatabaseDumper, Report, Snapshot, not_empty
from .files import NOT_OURS, PRIVATE, disk_errors, exclusive_lock
from .manifest import MANIFEST_NAME, Backup, read_backup

STAGING = ".restoring"
LOCK = "lock"
SHOWN = 5


@dataclass(frozen=True)
class Restored:
    """What was restored, and the bases to prepare again because the backup has no weights of them."""

    backup: Backup
    missing: tuple[Base, ...]


def restore(folder: Path, home: Home, dumper: DatabaseDumper, store: AdapterStore | None, report: Report) -> Restored:
    """Restore a backup. A base that is in the home already may stay if it is the same.

    Args:
        store: is given the versions that the database names and it lacks.

    Raises:
        NotFoundError: `backup_not_found`.
        CheckError: every reason of `backup_invalid`, `backup_newer`, `backup_incomplete`, `backup_damaged`,
            `wrong_digest`. Nothing was put in place.
        InputError: `home_not_empty`, `database_not_empty`, `database_kind_differs`. Nothing was written.
        ConflictError: `restore_unfinished` if a restore of another backup was interrupted; `already_running`.
        StorageError: `disk_full` or `disk_error`.
        And whatever the database and the store raise. The same command then continues.
    """
    backup = read_backup(folder)
    check_revision(folder, backup)
    if backup.database.kind != dumper.kind:
        raise InputError(
            f"{folder} holds a database of {backup.database.kind}; POLYTONE_DATABASE_URL names {dumper.kind}. "
            f"Name an empty database of {backup.database.kind}.",
            code="database_kind_differs",
        )
    staging, dump = home.root / STAGING, folder / backup.database.file
    expected = Snapshot(backup.database.revision, backup.database.rows, {}, backup.database.tool)
    with disk_errors(home.root):
        complete = is_complete(staging, folder)
        if not complete:
            check_empty(home, backup, dumper)
        fresh = not home.root.exists()
        staging.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(staging / LOCK):
            if not complete:
                with taken_back_unless_done(staging, dumper, home.root if fresh else None):
                    stage(folder, backup, home, staging, report)
                    dumper.prepare(dump, expected, report)
                    write_whole(staging / MANIFEST_NAME, (folder / MANIFEST_NAME).read_bytes(), PRIVATE)
                    flush_to_disk(staging)
            put_in_place(staging, home)
            if store is not None:
                fill_store(store, backup, home, report)
            dumper.put_in_place(dump, expected, report)
            (staging / MANIFEST_NAME).unlink()  # from now on this is a home like any other
            shutil.rmtree(staging)
    left_out = [
        base.base for name, base in backup.bases.items() if not (base_folder(home, name) / "base.json").is_file()
    ]
    return Restored(backup, tuple(left_out))


def is_complete(staging: Path, folder: Path) -> bool:
    """Whether an interrupted restore had copied and checked everything.

    Raises:
        ConflictError: `restore_unfinished`.
    """
    marker = staging / MANIFEST_NAME
    if not marker.is_file():
        return False
    if marker.read_bytes() != (folder / MANIFEST_NAME).read_bytes():
        raise ConflictError(
            f"{staging.parent} is partly restored from another backup. Finish that with polytone restore and its "
            f"folder, or remove everything in {staging.parent} and empty the database.",
            code="restore_unfinished",
        )
    return True


def check_empty(home: Home, backup: Backup, dumper: DatabaseDumper) -> None:
    """Refuse a home or a database that has something else in it.

    Raises:
        InputError: `home_not_empty`, `database_not_empty`.
    """
    ours = {STAGING, *NOT_OURS, *([dumper.prepared.name] if dumper.prepared is not None else [])}
    foreign = sorted(path for path in home.root.iterdir() if path.name not in ours) if home.root.is_dir() else []
    in_the_way = [path for path in foreign if path != home.bases]
    in_the_way += [path for path in sorted(home.bases.glob("*")) if not is_same_base(home, path.name, backup)]
    if in_the_way:
        more = f" and {len(in_the_way) - SHOWN} more" if len(in_the_way) > SHOWN else ""
        raise InputError(
            f"The home to restore into is not empty: {', '.join(map(str, in_the_way[:SHOWN]))}{more}. Stop the server, "
            "and name an empty folder (--home) or move these away. Nothing in it was changed.",
            code="home_not_empty",
            param="home",
        )
    if contents := dumper.contents():
        raise not_empty(", ".join(contents[:SHOWN]))


def is_same_base(home: Home, name: str, backup: Backup) -> bool:
    with contextlib.suppress(PolytoneError):
        return name in backup.bases and load_base(home, name).digest == backup.bases[name].base.digest
    return False


@contextlib.contextmanager
def taken_back_unless_done(staging: Path, dumper: DatabaseDumper, new_home: Path | None) -> Iterator[None]:
    """Remove what an earlier attempt left, and if the block fails, what the block wrote.

    Args:
        new_home: the home, if it was made for this restore; it is removed too if the block fails.
    """
    empty(staging)
    dumper.discard()
    try:
        yield
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        dumper.discard()
        if new_home is not None:
            with contextlib.suppress(OSError):
                new_home.rmdir()
        raise


def empty(staging: Path) -> None:
    for path in staging.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def stage(folder: Path, backup: Backup, home: Home, staging: Path, report: Report) -> None:
    """Copy everything but the database into `staging`, and check it."""
    present = frozenset(f"bases/{name}" for name in backup.bases if base_folder(home, name).exists())
    meter = Meter(report, "Copying the backup", backup.bytes)
    refuse_if(damages(folder, backup, staging, present, meter))
    staged = Home(staging)
    for version, text in backup.verdicts.items():
        target = verdict_path(staged, version)
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8")
        flush_to_disk(target)
    for path in staging.rglob("*/"):
        flush_to_disk(path)


def put_in_place(staging: Path, home: Home) -> None:
    """Rename the staged folders into the home. Those already in place were put there before an interruption.

    Raises:
        InputError: `home_not_empty` if something else was put there in the meantime.
    """
    home.bases.mkdir(exist_ok=True)
    for staged in [*staging.glob("bases/*"), *(staging / name for name in ("adapters", "evaluations"))]:
        if not staged.exists():
            continue
        target = home.root / staged.relative_to(staging)
        try:
            staged.rename(target)
        except OSError as error:
            if not target.exists():
                raise
            raise InputError(
                f"{target}: was made while the home was being restored ({error.strerror}). Stop the server, move "
                "it away, and restore again.",
                code="home_not_empty",
                param="home",
            ) from None
    flush_to_disk(home.bases)
    flush_to_disk(home.root)


def fill_store(store: AdapterStore, backup: Backup, home: Home, report: Report) -> None:
    """Put every version that the database names into the store, so that replicas can fetch it."""
    recorded = [version for version, stored in backup.versions.items() if stored.state is not None]
    for number, version in enumerate(recorded):
        report(f"Filling the adapter store ({number + 1} of {len(recorded)})", 0, 0)
        store.put(home.adapter_folder(version), version)
