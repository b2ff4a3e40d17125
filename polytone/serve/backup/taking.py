"""Take a backup while servers run."""

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
from .dump import DatabaseDumper, Report, make_private
from .files import NOT_OURS, PRIVATE, disk_errors, exclusive_lock, hash_file
from .manifest import MANIFEST_NAME, Backup, StoredDatabase, read_backup

LOCK = ".backup.lock"
DUMPS = "polytone-*"


@dataclass(frozen=True)
class Taken:
    """A backup that was taken, and which of its versions are new.

    `lacking` names what was left out although it is needed: everything left out but retired versions.
    """

    backup: Backup
    new: tuple[str, ...]
    lacking: tuple[str, ...]


def back_up(
    home: Home, dumper: DatabaseDumper, store: AdapterStore | None, folder: Path, with_bases: bool, report: Report
) -> Taken:
    """Save the database, versions, evaluations and bases into `folder`. Servers may go on running.

    If the folder has a backup already, only what is new is copied, and that backup stays valid until this one is
    complete.

    Args:
        store: where versions are fetched from that the home lacks.
        with_bases: copy the weights of the bases too.

    Raises:
        InputError: `backup_in_home`, `folder_not_empty`.
        ConflictError: `already_running`.
        CheckError: `backup_invalid` if the backup in the folder cannot be read.
        StorageError: `disk_full` or `disk_error`.
        And whatever the database and the store raise. No half-written backup is left behind.
    """
    with disk_errors(folder):
        check_place(folder, home)
        lock = open_folder(folder)
    with disk_errors(folder), exclusive_lock(lock):
        earlier = read_backup(folder) if (folder / MANIFEST_NAME).exists() else None
        tidy(folder, earlier)
        created = now()
        dump = folder / f"polytone-{created:%Y%m%dT%H%M%S%fZ}{dumper.ending}"
        try:
            make_private(dump)
            snapshot = dumper.dump(dump, report)
            flush_to_disk(dump)
            copies = Copies(home, store, folder, earlier)
            versions = copies.versions(snapshot.versions, report)
            backup = Backup(
                created=created,
                polytone=installed_version("polytone"),
                database=StoredDatabase(
                    file=dump.name,
                    kind=dumper.kind,
                    revision=snapshot.revision,
                    rows=snapshot.rows,
                    tool=snapshot.tool,
                    **hash_file(dump).model_dump(),
                ),
                versions=versions,
                evaluations=copies.evaluations(report),
                verdicts=read_verdicts(home),
                bases=copies.bases(with_bases, report),
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
    """Refuse a folder that cannot hold a backup.

    Raises:
        InputError: `backup_in_home`, `folder_not_empty`.
    """
    place, root = folder.resolve(), home.root.resolve()
    if place == root or root in place.parents:
        raise InputError(
            f"{folder}: is in the home {home.root} and would be lost with it. Name a folder on another disk.",
            code="backup_in_home",
            param="folder",
        )
    existing = {path.name for path in folder.iterdir()} - NOT_OURS if folder.is_dir() else set()
    if existing and not existing & {LOCK, MANIFEST_NAME}:
        raise InputError(
            f"{folder}: holds other files ({', '.join(sorted(existing)[:3])}). "
            "Name an empty folder, or one with a backup.",
            code="folder_not_empty",
            param="folder",
        )


def open_folder(folder: Path) -> Path:
    """Make the folder, readable by its owner alone, if it is not there. Returns the lock file to hold while writing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / LOCK


def read_verdicts(home: Home) -> dict[str, str]:
    """Version -> the text of its newest verdict. Verdicts are small and change, so each backup has them anew."""
    files = sorted(home.evaluations.glob("*@*.json"))
    return {
        path.stem: path.read_text("utf-8", "replace")
        for path in files
        if path.is_file() and not path.name.startswith(".")
    }


def tidy(folder: Path, backup: Backup | None) -> None:
    """Remove the dumps of other backups and the leftovers of one that was killed. The caller holds the lock."""
    for dump in folder.glob(DUMPS):
        if backup is None or dump.name != backup.database.file:
            dump.unlink(missing_ok=True)
    for path in folder.glob(f".{MANIFEST_NAME}.*"):
        path.unlink(missing_ok=True)
    for pattern in ("adapters/*/.*", "evaluations/.*", "bases/.*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
