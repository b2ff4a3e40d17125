"""Files of a backup: private, copied to the disk and hashed on the way; and who may write them."""

import contextlib
import fcntl
import filecmp
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from polytone.contract.errors import ConflictError, StorageError
from polytone.contract.files import disk_refusal

from .manifest import StoredFile

PRIVATE = 0o600
CHUNK = 1 << 20
READ_AGAIN_BYTES = 1 << 20
NOT_OURS = frozenset({"lost+found"})


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Nobody else is in a block with the same lock; a process that is killed lets go of it.

    Raises: ConflictError: `already_running`.
    """
    descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, PRIVATE)
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
        copy_file(path, target / name, PRIVATE, moved)


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


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Raises: StorageError: `disk_full` or `disk_error`."""
    try:
        yield
    except OSError as error:
        raise disk_refusal(error.filename or place, error) from error
