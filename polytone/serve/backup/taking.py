"""Taking a backup, beside servers that run."""

import shutil
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path

from polytone.contract.errors import InputError
from polytone.contract.files import flush_to_disk, write_whole
from polytone.contract.home import Home
from polytone.serve.adapters.registry import PUBLISHED
from polytone.serve.adapters.store import AdapterStore
from polytone.serve.database.session import now

from .copies import Copies
from .dump import Database, Tell, make_private
from .files import NOT_OURS, PRIVATE, alone, disk_errors, hash_file
from .manifest import MANIFEST_NAME, Backup, StoredDatabase, read_backup

LOCK = ".backup.lock"
DUMPS = "polytone-*"


@dataclass(frozen=True)
class Taken:
    """A backup that was taken: what is in it, which of its versions are new, and what it lacks though it should not:
    all that was left out but retired versions."""

    backup: Backup
    new: tuple[str, ...]
    lacking: tuple[str, ...]


def back_up(
    home: Home, database: Database, store: AdapterStore | None, folder: Path, with_bases: bool, tell: Tell
) -> Taken:
    """Save the database, versions, evaluations and bases into `folder`, where servers may run.

    Into a folder that has a backup already, only what is new is copied; that backup stands until this one is complete.

    Args:
        store: has versions that the home may lack.
        with_bases: whether to copy the bases' weights too.

    Raises:
        InputError: `backup_in_home`, `folder_not_empty`.
        ConflictError: `already_running`.
        CheckError: `backup_invalid` if the backup that is there cannot be read.
        StorageError: `disk_full` or `disk_error`.
        Whatever the database and the store raise. No half backup is left behind.
    """
    with disk_errors(folder):
        check_place(folder, home)
        lock = open_folder(folder)
    with disk_errors(folder), alone(lock):
        earlier = read_backup(folder) if (folder / MANIFEST_NAME).exists() else None
        tidy(folder, earlier)
        created = now()
        dump = folder / f"polytone-{created:%Y%m%dT%H%M%S%fZ}{database.ending}"
        try:
            make_private(dump)
            snapshot = database.dump(dump, tell)
            flush_to_disk(dump)
            copies = Copies(home, store, folder, earlier)
            versions = copies.versions(snapshot.versions, tell)
            backup = Backup(
                created=created,
                polytone=installed_version("polytone"),
                database=StoredDatabase(
                    file=dump.name,
                    kind=database.kind,
                    revision=snapshot.revision,
                    rows=snapshot.rows,
                    tool=snapshot.tool,
                    **hash_file(dump).model_dump(),
                ),
                versions=versions,
                evaluations=copies.evaluations(tell),
                verdicts=read_verdicts(home),
                bases=copies.bases(with_bases, tell),
                left_out=copies.left_out,
            )
            write_whole(folder / MANIFEST_NAME, backup.model_dump_json(by_alias=True, indent=1), PRIVATE)
            flush_to_disk(folder)
        except BaseException:
            tidy(folder, earlier)
            raise
        tidy(folder, backup)
    new = tuple(version for version in versions if earlier is None or version not in earlier.versions)
    lacking = tuple(name for name in backup.left_out if snapshot.versions.get(name, PUBLISHED) == PUBLISHED)
    return Taken(backup, new, lacking)


def check_place(folder: Path, home: Home) -> None:
    """Raises: InputError: `backup_in_home`, `folder_not_empty`."""
    place, root = folder.resolve(), home.root.resolve()
    if place == root or root in place.parents:
        raise InputError(
            f"{folder}: lies in the home {home.root} and would be lost with it. Name a folder on another disk.",
            code="backup_in_home",
            param="folder",
        )
    there = {path.name for path in folder.iterdir()} - NOT_OURS if folder.is_dir() else set()
    if there and not there & {LOCK, MANIFEST_NAME}:
        raise InputError(
            f"{folder}: holds other things ({', '.join(sorted(there)[:3])}). "
            "Name an empty folder, or one with a backup.",
            code="folder_not_empty",
            param="folder",
        )


def open_folder(folder: Path) -> Path:
    """Make the folder, for its owner alone, unless it is there; returns the file that is locked while it is written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / LOCK


def read_verdicts(home: Home) -> dict[str, str]:
    """The newest verdict on each version; they are small and change."""
    files = sorted(home.evaluations.glob("*@*.json"))
    return {
        path.stem: path.read_text("utf-8", "replace")
        for path in files
        if path.is_file() and not path.name.startswith(".")
    }


def tidy(folder: Path, backup: Backup | None) -> None:
    """Remove dumps of other backups, and what was left by one that was killed. Nobody else is at work here."""
    for dump in folder.glob(DUMPS):
        if backup is None or dump.name != backup.database.file:
            dump.unlink(missing_ok=True)
    for path in folder.glob(f".{MANIFEST_NAME}.*"):
        path.unlink(missing_ok=True)
    for pattern in ("adapters/*/.*", "evaluations/.*", "bases/.*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
