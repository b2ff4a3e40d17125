"""A backup compared with its manifest, while it is copied or alone."""

from collections.abc import Iterator
from pathlib import Path

from polytone.contract.adapter import read_folder
from polytone.contract.errors import CheckError, combined

from .dump import Tell, known_revisions
from .files import copy_file, disk_errors
from .manifest import Backup, StoredFile, StoredFolder, read_backup


def check_backup(folder: Path, tell: Tell) -> Backup:
    """Read a whole backup and compare it with its manifest; nothing is written.

    Raises: as `restore`, of the backup alone.
    """
    backup = read_backup(folder)
    check_revision(folder, backup)
    with disk_errors(folder):
        refuse_if(damages(folder, backup, None, frozenset(), Meter(tell, "Checking the backup", backup.bytes)))
    return backup


def check_revision(folder: Path, backup: Backup) -> None:
    if backup.database.revision not in known_revisions():
        raise CheckError(
            f"{folder} was made by Polytone {backup.polytone}, whose database schema ({backup.database.revision}) this "
            f"one does not know. Install Polytone {backup.polytone} or newer.",
            code="backup_newer",
        )


def refuse_if(found: Iterator[CheckError]) -> None:
    if problems := list(found):
        raise combined(problems)


def damages(
    folder: Path, backup: Backup, target: Path | None, there: frozenset[str], meter: "Meter"
) -> Iterator[CheckError]:
    """Everything in which the backup is not what its manifest says, after it was copied to `target` if there is one.

    Args:
        there: places in the home where nothing is to be copied to.
    """
    yield from damage(folder / backup.database.file, backup.database, None, meter)
    versions = {stored.folder: version for version, stored in backup.versions.items()}
    for place, stored in backup.folders():
        if target is not None and place in there:
            continue
        into = target / place if target is not None else None
        found = list(folder_damages(folder, stored, into, meter))
        if not found and stored.folder in versions:
            found = list(
                version_damages(into or folder / stored.folder, versions[stored.folder], folder / stored.folder)
            )
        yield from found


def folder_damages(folder: Path, stored: StoredFolder, into: Path | None, meter: "Meter") -> Iterator[CheckError]:
    for name, file in stored.files.items():
        if into is not None:
            (into / name).parent.mkdir(parents=True, exist_ok=True)
        yield from damage(folder / stored.folder / name, file, into / name if into is not None else None, meter)


def damage(source: Path, expected: StoredFile, target: Path | None, meter: "Meter") -> Iterator[CheckError]:
    if not source.is_file():
        yield CheckError(f"{source}: is missing from the backup. Use another backup.", code="backup_incomplete")
        return
    found = copy_file(source, target, 0o666, meter.moved)
    if (found.sha256, found.bytes) != (expected.sha256, expected.bytes):
        yield CheckError(
            f"{source}: was changed or damaged since it was saved ({found.bytes} bytes, sha256 {found.sha256[:12]}; "
            f"it had {expected.bytes}, {expected.sha256[:12]}). Use another backup.",
            code="backup_damaged",
        )


def version_damages(copy: Path, version: str, source: Path) -> Iterator[CheckError]:
    """A manifest that was made to fit a changed file does not change what the version's name says."""
    try:
        found = read_folder(copy).version
    except CheckError as error:
        error.message = error.message.replace(str(copy), str(source))
        yield error
        return
    if found != version:
        yield CheckError(f"{source}: holds {found}, not {version}. Use another backup.", code="wrong_digest")


class Meter:
    """Counts bytes and tells of them."""

    def __init__(self, tell: Tell, title: str, total: int) -> None:
        self._tell = tell
        self._title = title
        self._total = total
        self._done = 0

    def moved(self, count: int) -> None:
        self._done += count
        self._tell(self._title, self._done, self._total)
