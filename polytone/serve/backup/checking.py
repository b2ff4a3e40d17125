"""Compare a backup with its manifest, while it is copied or on its own."""

from collections.abc import Iterator
from pathlib import Path

from polytone.contract.adapter import read_folder
from polytone.contract.errors import CheckError, combined

from .dump import Report, known_revisions
from .files import copy_file, disk_errors
from .manifest import Backup, StoredFile, StoredFolder, read_backup


def check_backup(folder: Path, report: Report) -> Backup:
    """Read a whole backup and compare it with its manifest, without writing anything.

    Raises:
        PolytoneError: what `restore` raises for the backup itself.
    """
    backup = read_backup(folder)
    check_revision(folder, backup)
    with disk_errors(folder):
        refuse_if(damages(folder, backup, None, frozenset(), Meter(report, "Checking the backup", backup.bytes)))
    return backup


def check_revision(folder: Path, backup: Backup) -> None:
    if backup.database.revision not in known_revisions():
        raise CheckError(
            f"{folder} was made by Polytone {backup.polytone}, whose database schema ({backup.database.revision}) is "
            f"unknown here. Install Polytone {backup.polytone} or newer.",
            code="backup_newer",
        )


def refuse_if(damages: Iterator[CheckError]) -> None:
    if problems := list(damages):
        raise combined(problems)


def damages(
    folder: Path, backup: Backup, target: Path | None, present: frozenset[str], meter: "Meter"
) -> Iterator[CheckError]:
    """Everything in which the backup differs from its manifest. With a `target`, copy it there on the way.

    Args:
        present: places in the home that have their content already and are not copied.
    """
    yield from damage(folder / backup.database.file, backup.database, None, meter)
    versions = {stored.folder: version for version, stored in backup.versions.items()}
    for place, stored in backup.folders():
        if target is not None and place in present:
            continue
        into = target / place if target is not None else None
        problems = list(folder_damages(folder, stored, into, meter))
        if not problems and stored.folder in versions:
            problems = list(
                version_damages(into or folder / stored.folder, versions[stored.folder], folder / stored.folder)
            )
        yield from problems


def folder_damages(folder: Path, stored: StoredFolder, into: Path | None, meter: "Meter") -> Iterator[CheckError]:
    for name, file in stored.files.items():
        if into is not None:
            (into / name).parent.mkdir(parents=True, exist_ok=True)
        yield from damage(folder / stored.folder / name, file, into / name if into is not None else None, meter)


def damage(source: Path, expected: StoredFile, target: Path | None, meter: "Meter") -> Iterator[CheckError]:
    if not source.is_file():
        yield CheckError(f"{source}: is missing from the backup. Use another backup.", code="backup_incomplete")
        return
    copied = copy_file(source, target, 0o666, meter.moved)
    if (copied.sha256, copied.bytes) != (expected.sha256, expected.bytes):
        yield CheckError(
            f"{source}: was changed or damaged since it was saved ({copied.bytes} bytes, sha256 {copied.sha256[:12]}; "
            f"it had {expected.bytes}, {expected.sha256[:12]}). Use another backup.",
            code="backup_damaged",
        )


def version_damages(copy: Path, version: str, source: Path) -> Iterator[CheckError]:
    """Check a version against its id: a manifest could have been changed together with the files it describes."""
    try:
        version_here = read_folder(copy).version
    except CheckError as error:
        error.message = error.message.replace(str(copy), str(source))
        yield error
        return
    if version_here != version:
        yield CheckError(f"{source}: holds {version_here}, not {version}. Use another backup.", code="wrong_digest")


class Meter:
    """Count bytes and report them."""

    def __init__(self, report: Report, title: str, total: int) -> None:
        self._report = report
        self._title = title
        self._total = total
        self._done = 0

    def moved(self, count: int) -> None:
        self._done += count
        self._report(self._title, self._done, self._total)
