"""An uploaded adapter: an archive nobody trusts -> a version folder, or every reason why not.

Nothing of the archive is executed, linked or placed by its own word: regular files of known names are copied out,
counted while they are unpacked, checked, and renamed into place whole.
"""

import gzip
import io
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Self

from safetensors import SafetensorError, safe_open

from polytone.contract.adapter import FILES, OPTIONAL, WEIGHTS, Manifest, inspect_folder, unservable
from polytone.contract.base import Base
from polytone.contract.errors import CheckError, combined
from polytone.contract.files import folder_written_whole
from polytone.contract.home import Home
from polytone.contract.modules import check_against_base
from polytone.contract.names import check_name
from polytone.contract.tensors import read_header

CHUNK = 1 << 20
MAX_MEMBERS = 32
MAX_HEADER_BYTES = 1 << 16
TAR_BLOCKS = 1 << 20
EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
SHOWN = 5


def receive_version(
    archive: Path,
    name: str,
    home: Home,
    base: Base,
    shapes: dict[str, tuple[int, ...]],
    max_rank: int,
    limit: int,
    keep: Callable[[Path, str], bool] | None = None,
) -> Manifest:
    """Check an uploaded tar.gz and write it as a version of `name`; the same version again changes nothing.

    Args:
        shapes: module -> (out, in) of the base, as `module_shapes` gives them.
        limit: the most bytes the archive may unpack to.
        keep: puts the checked folder where other replicas find it, and returns whether it was not there yet. One that
            was there is what they answer with, and what this one is to fetch.

    Raises:
        CheckError: every reason; nothing is left behind.
        StorageError: `disk_full`.
        Whatever `keep` raises; nothing is left behind in the home then.
    """
    check_name(name)
    home.adapters.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".upload.", dir=home.adapters) as work:
        folder = Path(work) / "upload"
        folder.mkdir()
        found = list(unpack(archive, folder, limit))
        manifest = None
        if not found:
            manifest, found = inspect_received(folder, name, base, shapes, max_rank)
        if manifest is None or found:
            raise without_folder(found, folder)
        if keep is None or keep(folder, manifest.version):
            with folder_written_whole(home.adapter_folder(manifest.version)) as target:
                for file in folder.iterdir():
                    shutil.copyfile(file, target / file.name)
    return manifest


def unpack(archive: Path, folder: Path, limit: int) -> Iterator[CheckError]:
    """Copy the known files out; stops at the first thing an honest archive would not have."""
    left, seen = limit, set[str]()
    try:
        with (
            gzip.open(archive) as inside,
            Counted(inside, limit) as counted,
            tarfile.open(fileobj=counted, mode="r|", tarinfo=ShortHeader) as tar,
        ):
            for count, member in enumerate(tar, start=1):
                path = PurePosixPath(member.name)
                if member.isdir() and ".." not in path.parts and not path.is_absolute():
                    continue
                if problem := refusal(member, path, count, seen, left):
                    yield problem
                    return
                seen.add(path.name)
                source = tar.extractfile(member)
                if source is None:
                    yield bad(f"{member.name} has no content")
                    return
                left -= copy(source, folder / path.name)
            while counted.read(CHUNK):
                pass  # to the end, where gzip's checksum stands
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        yield bad(f"it is not a whole tar.gz archive ({error})")


class Counted(io.RawIOBase):
    """A stream that ends the reading after `limit` bytes and some for tar's own blocks, whatever they belong to."""

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
    """Extended headers are read into memory whole; an honest one is short."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.type in EXTENDED and info.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header is longer than any name")
        return info


def refusal(member: tarfile.TarInfo, path: PurePosixPath, count: int, seen: set[str], left: int) -> CheckError | None:
    if count > MAX_MEMBERS:
        return bad(f"it has more than {MAX_MEMBERS} members")
    if not member.isreg():
        return bad(f"{member.name!r} is not a regular file (links and devices are refused)")
    if path.is_absolute() or ".." in path.parts or len(path.parts) > 2:
        return bad(f"{member.name!r} points outside the adapter's folder")
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


def copy(source: IO[bytes], target: Path) -> int:
    size = 0
    with target.open("wb") as file:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            file.write(chunk)
    return size


def inspect_received(
    folder: Path, name: str, base: Base, shapes: dict[str, tuple[int, ...]], max_rank: int
) -> tuple[Manifest | None, list[CheckError]]:
    """As `inspect_folder`, for files that came from elsewhere to be served here as a version of `name`."""
    manifest, found = inspect_folder(folder)
    if manifest is not None:
        found += check_name_matches(manifest, name)
        found += unservable(manifest, base, max_rank)
    if not any(error.code in ("not_safetensors", "file_truncated", "files_missing") for error in found):
        found += check_against_base(read_header(folder / WEIGHTS), shapes)
        found += check_values(folder)
    return manifest, found


def check_name_matches(manifest: Manifest, name: str) -> Iterator[CheckError]:
    if manifest.name != name:
        yield CheckError(
            f"manifest.json: name: is {manifest.name!r}, the upload is for {name!r}.",
            code="manifest_invalid",
            param="name",
        )


def check_values(folder: Path) -> Iterator[CheckError]:
    """Weights must be numbers, and change something."""
    import torch  # takes seconds to import, and is needed here only

    broken, changes = [], False
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                tensor: torch.Tensor = tensors.get_tensor(name)
                if not bool(torch.isfinite(tensor).all()):
                    broken.append(name)
                changes = changes or (".lora_B." in name and bool(tensor.any()))
    except (SafetensorError, OSError, ValueError) as error:
        yield CheckError(f"{WEIGHTS}: cannot be read ({error}).", code="not_safetensors")
        return
    if broken:
        more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        yield CheckError(
            f"{WEIGHTS}: {', '.join(broken[:SHOWN])}{more} hold values that are not finite numbers.",
            code="weights_not_finite",
        )
    elif not changes:
        yield CheckError(f"{WEIGHTS}: every B is zero, so the adapter changes nothing.", code="weights_zero")


def bad(what: str) -> CheckError:
    return CheckError(f"archive: {what}. Make it with: polytone adapters pack VERSION", code="archive_invalid")


def without_folder(found: list[CheckError], folder: Path) -> CheckError:
    """The reasons, naming files as the sender knows them."""
    for error in found:
        error.message = error.message.replace(f"{folder}/", "").replace(str(folder), "the archive")
    return combined(found)
