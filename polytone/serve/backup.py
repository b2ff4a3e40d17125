"""A backup: the database at one moment, every version that it names and the home has, and what evaluations found.

    FOLDER/backup.json                    what is in it; it is written last, and without it there is no backup
    FOLDER/polytone-<moment>.db           the database (.pgdump of PostgreSQL)
    FOLDER/adapters/<name>/<digest12>/    as in a home; copied once, never changed
    FOLDER/evaluations/<folder>/          likewise
    FOLDER/bases/<id>/                    likewise, unless they are left out

The database comes first: versions are written before they are recorded, so whatever it names is there afterwards.
"""

import contextlib
import fcntl
import filecmp
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version as installed_version
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from polytone.contract.adapter import MANIFEST, list_versions, read_folder, read_manifest
from polytone.contract.base import Base, list_bases, load_base
from polytone.contract.errors import (
    CheckError,
    ConflictError,
    InputError,
    NotFoundError,
    StorageError,
    UnavailableError,
)
from polytone.contract.files import disk_refusal, flush_to_disk, folder_written_whole, unused_folder
from polytone.contract.home import Home, check_name, split_version
from polytone.contract.rows import describe

from .database import now
from .dump import Database, Kind, Tell, make_private
from .registry import PUBLISHED
from .store import AdapterStore

MANIFEST_NAME = "backup.json"
LOCK = ".backup.lock"
DUMPS = "polytone-*"
CHUNK = 1 << 20
READ_AGAIN_BYTES = 1 << 20
NOT_OURS = frozenset({"lost+found"})


def check_path(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise ValueError("leads out of its folder")
    return path


def check_word(name: str) -> str:
    if check_path(name) and len(PurePosixPath(name).parts) != 1:
        raise ValueError("is no single name")
    return name


RelativePath = Annotated[str, AfterValidator(check_path)]
Word = Annotated[str, AfterValidator(check_word)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredFile(Part):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class StoredFolder(Part):
    """A folder of the home: where it lies in the backup, and its files by their paths in it."""

    folder: RelativePath
    files: dict[RelativePath, StoredFile]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


class StoredVersion(StoredFolder):
    """`state` is what the database says of it; None for one that it does not name."""

    digest: str
    state: str | None


class StoredBase(Part):
    """base.json's content; `weights` is None where they were left out."""

    base: Base
    weights: StoredFolder | None


class StoredDatabase(StoredFile):
    """The dump. `rows` says how many each table has, `tool` which pg_dump wrote it."""

    file: Word
    kind: Kind
    revision: str
    rows: dict[str, int]
    tool: int


class Backup(Part):
    """The content of backup.json. Everything that was acknowledged before `created` is in the backup.

    `verdicts` holds evaluations/<version>.json as text; `left_out` says why a version or base is missing that the
    database names or the home has.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_: Literal["polytone.backup/1"] = Field("polytone.backup/1", alias="schema")
    created: datetime
    polytone: str
    database: StoredDatabase
    versions: dict[str, StoredVersion]
    evaluations: dict[Word, StoredFolder]
    verdicts: dict[str, str]
    bases: dict[str, StoredBase]
    left_out: dict[str, str]

    @property
    def bytes(self) -> int:
        return self.database.bytes + sum(stored.bytes for _, stored in self.folders())

    def folders(self) -> Iterator[tuple[str, StoredFolder]]:
        """Every folder with its place in a home."""
        for version, stored in self.versions.items():
            yield "/".join(("adapters", *split_version(version))), stored
        for name, found in self.evaluations.items():
            yield f"evaluations/{name}", found
        for base_id, base in self.bases.items():
            if base.weights is not None:
                yield f"bases/{check_name(base_id, 'base id')}", base.weights


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
            write_private(folder / MANIFEST_NAME, backup.model_dump_json(by_alias=True, indent=1).encode())
        except BaseException:
            tidy(folder, earlier)
            raise
        tidy(folder, backup)
    new = tuple(version for version in versions if earlier is None or version not in earlier.versions)
    lacking = tuple(name for name in backup.left_out if snapshot.versions.get(name, PUBLISHED) == PUBLISHED)
    return Taken(backup, new, lacking)


def read_backup(folder: Path) -> Backup:
    """Raises: NotFoundError: `backup_not_found`. CheckError: `backup_invalid`."""
    path = folder / MANIFEST_NAME
    try:
        backup = Backup.model_validate_json(path.read_bytes())
        list(backup.folders())
        return backup
    except FileNotFoundError:
        raise NotFoundError(
            f"There is no backup in {folder}: it has no {MANIFEST_NAME}, which is written when a backup is complete.",
            code="backup_not_found",
        ) from None
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {error.strerror}.", code="disk_error") from None
    except ValidationError as error:
        problems = "; ".join(describe(problem) for problem in error.errors()[:3])
    except InputError as error:
        problems = error.message
    raise CheckError(
        f"{path}: {problems}. It was changed or damaged, or is of another Polytone. Use another backup; to make a new "
        "one here, move this file away.",
        code="backup_invalid",
    )


class Copies:
    """Copies folders of a home into a backup, once each."""

    def __init__(self, home: Home, store: AdapterStore | None, folder: Path, earlier: Backup | None) -> None:
        self._home = home
        self._store = store
        self._folder = folder
        self._known = dict(earlier.folders()) if earlier is not None else {}
        self.left_out: dict[str, str] = {}

    def versions(self, recorded: dict[str, str], tell: Tell) -> dict[str, StoredVersion]:
        """Every version that is `recorded` in the database or lies in the home."""
        stored: dict[str, StoredVersion] = {}
        wanted = sorted({*recorded, *list_versions(self._home)})
        for number, version in enumerate(wanted):
            tell(f"Copying versions ({number + 1} of {len(wanted)})", 0, 0)
            try:
                found = self._version(version)
            except (InputError, NotFoundError, CheckError, UnavailableError) as error:
                self.left_out[version] = error.message
                continue
            digest = read_manifest(self._folder / found.folder).digest
            stored[version] = StoredVersion(
                folder=found.folder, files=found.files, digest=digest, state=recorded.get(version)
            )
        return stored

    def evaluations(self, tell: Tell) -> dict[str, StoredFolder]:
        names = sorted(path.name for path in self._home.evaluations.glob("*/") if not path.name.startswith("."))
        return {
            name: self._kept(f"evaluations/{name}", self._home.evaluations / name, tell, "Copying evaluations")
            for name in names
        }

    def bases(self, whole: bool, tell: Tell) -> dict[str, StoredBase]:
        stored: dict[str, StoredBase] = {}
        for name in list_bases(self._home):
            try:
                base = load_base(self._home, name)
            except CheckError as error:
                self.left_out[name] = error.message
                continue
            source, title = self._home.bases / name, f"Copying the base {name}"
            stored[name] = StoredBase(
                base=base, weights=self._kept(f"bases/{name}", source, tell, title) if whole else None
            )
        return stored

    def _version(self, version: str) -> StoredFolder:
        """Raises: InputError, NotFoundError, CheckError or UnavailableError: why it cannot be saved."""
        source = self._home.adapter_folder(version)
        place = "/".join(("adapters", *split_version(version)))

        def check(copy: Path) -> None:
            if (found := read_folder(copy).version) != version:
                raise CheckError(f"{source}: holds {found}.", code="wrong_digest")

        if (source / MANIFEST).is_file():
            try:
                return self._there(place, source, check) or self._copied(
                    place, lambda work: copy_files(source, work), check, source
                )
            except CheckError:  # damaged here; a whole one was saved before, or is in the store
                if (known := self._there(place, None, check)) is None and self._store is None:
                    raise
        else:
            known = self._there(place, None, check)
        if known is not None:
            return known
        if self._store is not None:
            store = self._store
            return self._copied(place, lambda work: store.copy_out(version, work), check, store.place(version))
        raise NotFoundError(f"{source}: is not there.", code="version_not_found")

    def _kept(self, place: str, source: Path, tell: Tell, title: str) -> StoredFolder:
        if (known := self._there(place, source, lambda _: None)) is not None:
            return known
        done, total = 0, sum(path.stat().st_size for path in files_in(source).values())

        def moved(count: int) -> None:
            nonlocal done
            done += count
            tell(title, done, total)

        return self._copied(place, lambda work: copy_files(source, work, moved), lambda _: None, source)

    def _there(self, place: str, source: Path | None, check: Callable[[Path], None]) -> StoredFolder | None:
        """The copy that an earlier backup made of `source` (None: of what is gone now); None where there is none."""
        known = self._known.get(place)
        copy = self._folder / (known.folder if known is not None else place)
        if not copy.is_dir() or (source is not None and not alike(source, copy)):
            return None
        if known is not None:
            return StoredFolder(folder=known.folder, files=known.files)
        try:  # of a backup that was cut off, or that is not the last one
            check(copy)
        except CheckError:
            return None
        return StoredFolder(folder=place, files={name: hash_file(path) for name, path in files_in(copy).items()})

    def _copied(
        self, place: str, fill: Callable[[Path], None], check: Callable[[Path], None], source: Path | str
    ) -> StoredFolder:
        target = unused_folder(self._folder / place)  # one that is there is another backup's, and stays
        for parent in reversed(PurePosixPath(place).parents[:-1]):
            (self._folder / parent).mkdir(mode=0o700, exist_ok=True)
        with folder_written_whole(target) as work:
            work.chmod(0o700)
            try:
                fill(work)
                check(work)
            except (CheckError, NotFoundError) as error:
                error.message = error.message.replace(str(work), str(source))
                raise
            for path in work.rglob("*"):
                path.chmod(0o700 if path.is_dir() else 0o600)
            files = {name: hash_file(path) for name, path in files_in(work).items()}
        return StoredFolder(folder=str(target.relative_to(self._folder)), files=files)


def read_verdicts(home: Home) -> dict[str, str]:
    """The newest verdict on each version; they are small and change."""
    files = sorted(home.evaluations.glob("*@*.json"))
    return {
        path.stem: path.read_text("utf-8", "replace")
        for path in files
        if path.is_file() and not path.name.startswith(".")
    }


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


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Nobody else is in a block with the same lock; a process that is killed lets go of it.

    Raises: ConflictError: `already_running`.
    """
    descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                f"Another backup or restore is at work in {lock.parent}. Wait for its end.", code="already_running"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


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


def alike(source: Path, copy: Path) -> bool:
    """The same names and sizes, and the same bytes in every small file. Among those is always one that names the digest
    of the large ones."""
    one, other = files_in(source), files_in(copy)
    return one.keys() == other.keys() and all(
        path.stat().st_size == other[name].stat().st_size
        and (path.stat().st_size > READ_AGAIN_BYTES or filecmp.cmp(path, other[name], shallow=False))
        for name, path in one.items()
    )


def files_in(folder: Path) -> dict[str, Path]:
    """Every file by its path in the folder."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def copy_files(source: Path, target: Path, moved: Callable[[int], None] = lambda _: None) -> None:
    for name, path in files_in(source).items():
        (target / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        copy_file(path, target / name, 0o600, moved)


def copy_file(
    source: Path, target: Path | None, mode: int, moved: Callable[[int], None] = lambda _: None
) -> StoredFile:
    """Copy to a new file, on disk when this returns, or only read where there is no target.

    Raises: StorageError: `disk_error` if it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with contextlib.ExitStack() as opened:
        try:
            reader = opened.enter_context(source.open("rb"))
        except OSError as error:
            raise StorageError(f"Cannot read {source}: {error.strerror}.", code="disk_error") from None
        writer = None
        if target is not None:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            writer = opened.enter_context(os.fdopen(descriptor, "wb"))
        while chunk := reader.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if writer is not None:
                writer.write(chunk)
            moved(len(chunk))
        if writer is not None:
            writer.flush()
            os.fsync(writer.fileno())
    return StoredFile(sha256=digest.hexdigest(), bytes=size)


def hash_file(path: Path) -> StoredFile:
    return copy_file(path, None, 0)


def write_private(target: Path, content: bytes) -> None:
    """Write a file whole, readable by its owner alone."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # has that mode
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    Path(name).replace(target)
    flush_to_disk(target.parent)


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Raises: StorageError: `disk_full` or `disk_error`."""
    try:
        yield
    except OSError as error:
        raise disk_refusal(error.filename or place, error) from error
