"""Copy, hash, compare and lock the files of a backup. They are readable by their owner alone."""

import contextlib
import errno
import filecmp
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from polytone.contract.errors import ConflictError, StorageError
from polytone.contract.files import disk_refusal

from .manifest import StoredFile

PRIVATE = 0o600
CHUNK = 1 << 20
READ_AGAIN_BYTES = 1 << 20
NOT_OURS = frozenset({"lost+found"})
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP)  # of file systems without locks: a backup there goes on without one


@contextmanager
def exclusive_lock(file: Path) -> Iterator[None]:
    """Keep other processes out of blocks with the same lock file. A killed process releases its lock.

    Raises:
        ConflictError: `already_running`.
    """
    lock = FileLock(file, timeout=0, mode=PRIVATE)
    try:
        lock.acquire()
    except Timeout:
        raise ConflictError(
            f"Another backup or restore is running in {file.parent}. Wait until it ends.", code="already_running"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()


def alike(source: Path, copy: Path) -> bool:
    """Whether two folders have the same names and sizes, and the same bytes in every small file.

    Large files are compared by size alone, since one of the small ones always names their digest.
    """
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
        copy_file(path, target / name, PRIVATE, moved)


def copy_file(
    source: Path, target: Path | None, mode: int, moved: Callable[[int], None] = lambda _: None
) -> StoredFile:
    """Copy to a new file and flush it to the disk; without a target, read and hash only.

    Args:
        moved: is told the number of bytes after each chunk.

    Raises:
        StorageError: `disk_error` if the source cannot be read.
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


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn an OSError into a StorageError, `disk_full` or `disk_error`."""
    try:
        yield
    except OSError as error:
        raise disk_refusal(error.filename or place, error) from error
