"""A version folder packed as a tar.gz, and such an archive unpacked without trusting it."""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Self

from polytone.contract.adapter import FILES, OPTIONAL, read_version
from polytone.contract.errors import CheckError
from polytone.contract.home import Home

CHUNK = 1 << 20
MAX_MEMBERS = 32
MAX_HEADER_BYTES = 1 << 12
TAR_BLOCKS = 1 << 20
PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def pack_version(home: Home, version: str, target: Path) -> None:
    """Check a version and write its files. Its members are always the same: they have no owner and no time."""
    read_version(home, version)
    folder = home.adapter_folder(version)
    with tarfile.open(target, "w:gz") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, arcname=path.name, recursive=False, filter=anonymous)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    member.mode = 0o644
    return member


def unpack(archive: Path, folder: Path, limit: int) -> Iterator[CheckError]:
    """Copy the known files into `folder`; stop at the first thing that `pack_version` would not have written."""
    left, seen = limit, set[str]()
    try:
        with (
            gzip.open(archive) as content,
            LimitedStream(content, limit) as stream,
            tarfile.open(fileobj=stream, mode="r|", tarinfo=ShortHeader) as tar,
        ):
            for count, member in enumerate(tar, start=1):
                path = PurePosixPath(member.name)
                if count > MAX_MEMBERS:
                    yield invalid(f"it has more than {MAX_MEMBERS} members")
                    return
                if member.isdir() and ".." not in path.parts and not path.is_absolute():
                    continue
                if problem := member_problem(member, path, seen, left):
                    yield problem
                    return
                seen.add(path.name)
                source = tar.extractfile(member)
                if source is None:
                    yield invalid(f"{member.name} has no content")
                    return
                left -= copy_to(source, folder / path.name)
            while stream.read(CHUNK):
                pass  # to the end, where gzip's checksum is
    except RecursionError:  # tarfile reads a header that follows a header by calling itself
        yield invalid("a name has too many headers")
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        yield invalid(f"it is not a whole tar.gz archive ({error})")


class LimitedStream(io.RawIOBase):
    """A stream that refuses to go on after `limit` bytes and some for tar's own blocks, whatever they belong to."""

    def __init__(self, source: gzip.GzipFile, limit: int) -> None:
        super().__init__()
        self._source = source
        self._left = limit + TAR_BLOCKS

    def read(self, size: int = -1) -> bytes:
        content = self._source.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise tarfile.ReadError("it unpacks to more than this server takes")
        return content


class ShortHeader(tarfile.TarInfo):
    """A member whose extended header is short: tarfile reads those into memory as a whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.type in EXTENDED and info.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header is longer than any name")
        return info


def member_problem(member: tarfile.TarInfo, path: PurePosixPath, seen: set[str], left: int) -> CheckError | None:
    if member.type not in PLAIN or member.sparse is not None:  # a sparse file's holes cost the sender nothing
        return invalid(f"{member.name!r} is not a plain file (links, devices and sparse files are refused)")
    if path.is_absolute() or ".." in path.parts or len(path.parts) > 2:
        return invalid(f"{member.name!r} points outside the adapter's folder")
    if path.name not in FILES | OPTIONAL or path.name in seen:
        return CheckError(
            f"archive: has unexpected {path.name!r}. An adapter has exactly {', '.join(sorted(FILES))}, each once, "
            f"and may have {', '.join(sorted(OPTIONAL))}.",
            code="files_unexpected",
        )
    if member.size > left:
        return CheckError(
            "archive: unpacks to more than this server takes (POLYTONE_MAX_UPLOAD_BYTES).", code="archive_too_large"
        )
    return None


def copy_to(source: IO[bytes], target: Path) -> int:
    size = 0
    with target.open("wb") as file:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            file.write(chunk)
    return size


def invalid(problem: str) -> CheckError:
    return CheckError(f"archive: {problem}. Make it with: polytone adapters pack VERSION", code="archive_invalid")
