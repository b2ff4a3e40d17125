"""Files that are written together, whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from polytone.contract.errors import StorageError
from polytone.contract.home import flush_to_disk


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write every file under a temporary name beside it, then rename them all.

    Raises:
        StorageError: `disk_full` or `disk_error`; no new file is left behind.
    """
    temporary: dict[Path, Path] = {}
    placed: list[Path] = []
    try:
        for target, content in contents.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary[target] = write_beside(target, content)
        for target, written in temporary.items():
            written.replace(target)
            placed.append(target)
    except OSError as error:
        for path in placed:
            path.unlink(missing_ok=True)
        full = error.errno in (28, 122)  # ENOSPC, EDQUOT
        raise StorageError(
            f"Cannot write {error.filename or next(iter(contents))}: {error.strerror or error}. "
            + ("Free some space and try again; " if full else "")
            + "nothing was left half-written.",
            code="disk_full" if full else "disk_error",
        ) from error
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def write_beside(target: Path, content: bytes) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        path.chmod(0o644)
        flush_to_disk(path)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return path
