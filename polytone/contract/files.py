"""Write files and folders atomically: a reader sees the old one or the new one."""

import contextlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .errors import StorageError

LEFTOVER_SECONDS = 24 * 3600
READABLE = 0o644


@contextmanager
def folder_written_whole(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; rename it to `target` only when the block succeeds.

    A reader sees the whole folder or none. If `target` exists already, it stays and the new folder is dropped.

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
        raise disk_refusal(target, error) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def suppress_if_there(target: Path) -> Iterator[None]:
    """Ignore that a rename failed because the folder exists; it holds the same content then."""
    try:
        yield
    except OSError:
        if not target.is_dir():
            raise


def remove_folder(folder: Path) -> None:
    """Hide a folder by a rename, then delete it. It may be missing."""
    hidden = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def write_whole(target: Path, content: str | bytes, mode: int = READABLE) -> None:
    """Write a file, text as UTF-8.

    Raises:
        StorageError: `disk_full` or `disk_error`; the earlier file stays.
    """
    write_together({target: content.encode() if isinstance(content, str) else content}, mode)


def write_together(contents: Mapping[Path, bytes], mode: int = READABLE) -> None:
    """Write several files under temporary names beside them, then rename them all.

    Raises:
        StorageError: `disk_full` or `disk_error`; no new file is left behind.
    """
    temporary: dict[Path, Path] = {}
    placed: list[Path] = []
    try:
        for target, content in contents.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary[target] = write_beside(target, content, mode)
        for target, written in temporary.items():
            written.replace(target)
            placed.append(target)
    except OSError as error:
        for path in placed:
            path.unlink(missing_ok=True)
        raise disk_refusal(error.filename or next(iter(contents)), error) from error
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def write_beside(target: Path, content: bytes, mode: int) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        path.chmod(mode)
        flush_to_disk(path)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return path


def disk_refusal(target: Path | str, error: OSError) -> StorageError:
    full = error.errno in (28, 122)  # ENOSPC, EDQUOT
    return StorageError(
        f"Cannot write {target}: {error.strerror or error}. "
        + ("Free some space and try again. " if full else "")
        + "Nothing was left half-written.",
        code="disk_full" if full else "disk_error",
    )


def unused_folder(folder: Path) -> Path:
    """`folder`, or the same name with a number if it exists: two runs may begin in the same second."""
    free, number = folder, 1
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in `folder`: hidden names that are older than any write takes."""
    limit = time.time() - LEFTOVER_SECONDS
    with contextlib.suppress(FileNotFoundError):  # another writer just finished; the rest can wait until the next start
        for path in [*folder.glob(".*"), *folder.glob("*/.*")]:
            if path.stat().st_mtime < limit:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
