"""Where things lie on disk: the layout of POLYTONE_HOME."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError, StorageError

NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,62}"
DIGEST_LENGTH = 12
LEFTOVER_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Home:
    """The folder that holds bases, adapters, runs and the database."""

    root: Path

    @property
    def bases(self) -> Path:
        return self.root / "bases"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def sweeps(self) -> Path:
        return self.root / "sweeps"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluations"

    @property
    def database_url(self) -> str:
        return f"sqlite:///{(self.root / 'polytone.db').absolute()}"

    def adapter_folder(self, version: str) -> Path:
        name, digest = split_version(version)
        return self.adapters / name / digest


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if it can stand in a path, a URL and a metric label.

    Raises:
        InputError: `invalid_name`.
    """
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise InputError(
            f"{what} {name!r} is not allowed: use 1 to 63 lower-case letters, digits, '.', '_' or '-', "
            "starting with a letter or digit.",
            code="invalid_name",
            param=what,
        )
    return name


def split_version(version: str) -> tuple[str, str]:
    """Split `name@digest12` into its two parts.

    Raises:
        InputError: `invalid_version`.
    """
    name, _, digest = version.partition("@")
    if re.fullmatch(NAME_PATTERN, name) is None or re.fullmatch(r"[0-9a-f]{12}", digest) is None:
        raise InputError(
            f"{version!r} is not a version id; a version is named like acme@3f2a91c0de12.",
            code="invalid_version",
            param="version",
        )
    return name, digest


@contextmanager
def folder_written_whole(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; rename it to `target` only when the block succeeds.

    A reader sees the whole folder or none. If `target` exists already, it stays and the new copy is dropped.

    Raises:
        StorageError: `disk_full` or `disk_error`; nothing is left behind.
    """
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        temporary.chmod(0o755)
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                flush_to_disk(path)
        flush_to_disk(temporary)
        with suppress_if_there(target):
            temporary.rename(target)
            flush_to_disk(target.parent)
    except OSError as error:
        full = error.errno in (28, 122)  # ENOSPC, EDQUOT
        raise StorageError(
            f"Cannot write {target}: {error.strerror or error}. "
            + ("Free some space and try again; " if full else "")
            + "nothing was left half-written.",
            code="disk_full" if full else "disk_error",
        ) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what writers left in `folder` that were killed: hidden names, older than any writer takes."""
    limit = time.time() - LEFTOVER_SECONDS
    for path in [*folder.glob(".*"), *folder.glob("*/.*")]:
        if path.stat().st_mtime < limit:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def suppress_if_there(target: Path) -> Iterator[None]:
    """Renaming onto a folder that is there already fails; then the one that is there is the same version."""
    try:
        yield
    except OSError:
        if not target.is_dir():
            raise


def flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
