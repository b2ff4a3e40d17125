"""The content of backup.json."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from polytone.contract.base import Base
from polytone.contract.errors import CheckError, InputError, NotFoundError, StorageError
from polytone.contract.models import FrozenModel, describe_problems
from polytone.contract.names import check_name
from polytone.contract.version_id import VersionId

from .dump import Kind

MANIFEST_NAME = "backup.json"


def check_path(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise ValueError("points outside its folder")
    return path


def check_word(name: str) -> str:
    if check_path(name) and len(PurePosixPath(name).parts) != 1:
        raise ValueError("is not a single name")
    return name


RelativePath = Annotated[str, AfterValidator(check_path)]
Word = Annotated[str, AfterValidator(check_word)]


class StoredFile(FrozenModel):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class StoredFolder(FrozenModel):
    """A folder of the home: its place in the backup, and its files by their paths in it."""

    folder: RelativePath
    files: dict[RelativePath, StoredFile]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


class StoredVersion(StoredFolder):
    """A version. `state` is the state recorded in the database; None if the database does not name it."""

    digest: str
    state: str | None


class StoredBase(FrozenModel):
    """A base. `weights` is None if they were left out."""

    base: Base
    weights: StoredFolder | None


class StoredDatabase(StoredFile):
    """The dump. `rows` counts the rows of each table, `tool` is the major version of the pg_dump that wrote it."""

    file: Word
    kind: Kind
    revision: str
    rows: dict[str, int]
    tool: int


class Backup(FrozenModel, populate_by_name=True):
    """One backup. Everything that was acknowledged before `created` is in it.

    `verdicts` holds evaluations/<version>.json as text; `left_out` says why a version or base that
    the database names or the home has is missing.
    """

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
        """Every folder, with its place in a home."""
        for version, stored in self.versions.items():
            yield f"adapters/{VersionId.parse(version).path}", stored
        for name, evaluation in self.evaluations.items():
            yield f"evaluations/{name}", evaluation
        for base_id, base in self.bases.items():
            if base.weights is not None:
                yield f"bases/{check_name(base_id, 'base id')}", base.weights


def read_backup(folder: Path) -> Backup:
    """Read and check backup.json.

    Raises:
        NotFoundError: `backup_not_found`.
        CheckError: `backup_invalid`.
        StorageError: `disk_error`.
    """
    path = folder / MANIFEST_NAME
    try:
        backup = Backup.model_validate_json(path.read_bytes())
        list(backup.folders())
        return backup
    except FileNotFoundError:
        raise NotFoundError(
            f"There is no backup in {folder}: it has no {MANIFEST_NAME}, which is written once a backup is complete.",
            code="backup_not_found",
        ) from None
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {error.strerror}.", code="disk_error") from None
    except ValidationError as error:
        problems = describe_problems(error.errors()[:3])
    except InputError as error:
        problems = error.message
    raise CheckError(
        f"{path}: {problems}. It was changed or damaged, or comes from another version of Polytone. "
        "Use another backup. To make a new one here, move this file away.",
        code="backup_invalid",
    )
