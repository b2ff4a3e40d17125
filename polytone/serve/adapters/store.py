"""The adapter store: one place, at any fsspec URL, from which every replica fetches versions into its home.

A version has the folder `<voice>/<digest>/` there, as in a home. Its manifest is written last, and only then is the
version recorded in the database, so that a replica can fetch every version it hears of. The store is trusted no more
than an upload: files with expected names are copied out and counted, and checked before they are used.
"""

import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from polytone.contract.adapter import FILES, OPTIONAL, read_folder
from polytone.contract.errors import CheckError, InputError, NotFoundError, PolytoneError, UnavailableError
from polytone.contract.files import disk_refusal
from polytone.contract.manifest import MANIFEST, Manifest, read_manifest
from polytone.contract.reference import REFERENCE
from polytone.contract.version_id import VersionId

SETTING = "POLYTONE_ADAPTER_STORE"
CHUNK = 1 << 20


def open_store(url: str | None, limit: int) -> "AdapterStore | None":
    """The store at the setting `adapter_store`; None without one, where replicas read versions from their home alone.

    Raises:
        InputError: `settings_invalid` if nothing that is installed can open such a URL.
    """
    if not url:
        return None
    store = AdapterStore(url, limit)
    store.check_url()
    return store


class AdapterStore:
    """Versions at one URL. Methods block, for minutes if the store hangs: call them by `in_daemon_thread`.

    Args:
        limit: the most bytes that a version's files may have.
    """

    def __init__(self, url: str, limit: int) -> None:
        self._url = url
        self._limit = limit
        self._opened: tuple[Any, str] | None = None

    def __str__(self) -> str:
        """The URL without its user, password and query, which may be secret."""
        return re.sub(r"//[^/]*@", "//", re.sub(r"[?#].*", "", self._url))

    def check_url(self) -> None:
        """Raises: InputError: `settings_invalid`."""
        import fsspec

        protocol = fsspec.core.split_protocol(self._url)[0]
        try:
            fsspec.get_filesystem_class(protocol)
        except (ValueError, ImportError) as error:
            raise InputError(
                f"{SETTING}: {self} cannot be used: {error}. Name a URL such as file:///mnt/adapters, or install what "
                "fsspec needs for this one.",
                code="settings_invalid",
                param="adapter_store",
            ) from None

    def put(self, folder: Path, version: str) -> bool:
        """Write a version whose folder was checked, and read it back. One that is whole in the store stays as it is.

        Returns whether anything was written.

        Raises:
            UnavailableError: `store_unavailable`. What was written has no manifest until another `put` completes it.
            CheckError: `version_too_large`.
            StorageError: `disk_full` or `disk_error`, of this machine.
        """
        existing = {path.name for path in folder.iterdir()} & (FILES | OPTIONAL)
        names = [*sorted(existing - {MANIFEST}), MANIFEST]
        if sum((folder / name).stat().st_size for name in names) > self._limit:
            raise self._too_large(version)
        if self._problem(folder, version) is None:
            return False
        try:
            with self._accessing():
                for name in names:
                    self._write(folder / name, f"{self._folder(version)}/{name}")
        except UnavailableError:
            if self._problem(folder, version) is not None:  # otherwise someone else wrote the same version meanwhile
                raise
        if (problem := self._problem(folder, version)) is not None:
            raise self._unavailable(f"it does not give back what was written to it: {problem}")
        self._remove_unfinished(version)
        return True

    def copy_out(self, version: str, folder: Path, accept: Callable[[Manifest], None] | None = None) -> None:
        """Copy a version's files into an empty folder, the manifest first. No other file of the store is read.

        The files are not checked yet, and some may be missing.

        Args:
            accept: is called with the manifest before the other files are copied, and may raise to refuse it.

        Raises:
            NotFoundError: `version_not_found` if there is no manifest.
            CheckError: `manifest_invalid`, `wrong_digest`, `version_too_large`, `files_unexpected`.
            UnavailableError: `store_unavailable`.
        """
        try:
            left = self._limit - self._read(version, MANIFEST, folder, self._limit)
        except FileNotFoundError:
            raise NotFoundError(
                f"{version} is not in the adapter store {self} ({SETTING}). Publish it from where it was made: "
                f"polytone adapters publish {version}",
                code="version_not_found",
                param="version",
            ) from None
        manifest = read_manifest(folder)
        if manifest.version != version:
            raise CheckError(f"{folder / MANIFEST}: is of {manifest.version}, not {version}.", code="wrong_digest")
        if accept is not None:
            accept(manifest)
        names = FILES - {MANIFEST} | ({REFERENCE} if manifest.drift_reference is not None else set())
        for name in sorted(names):
            with suppress(FileNotFoundError):
                left -= self._read(version, name, folder, left)

    def place(self, version: str) -> str:
        """A version's place, for people."""
        return f"{str(self).rstrip('/')}/{VersionId.parse(version).path}"

    def _folder(self, version: str) -> str:
        """A version's folder in the file system. On a disk it must not be reached by a link that leads elsewhere."""
        files, root = self._open()
        path = VersionId.parse(version).path
        folder = f"{root.rstrip('/')}/{path}"
        if is_on_disk(files) and Path(folder).resolve() != Path(root).resolve() / path:
            raise CheckError(f"{self.place(version)}: is a link that leads elsewhere.", code="files_unexpected")
        return folder

    def _open(self) -> tuple[Any, str]:
        """The file system and the root in it. It is opened once, and keeps its connections."""
        import fsspec

        if self._opened is None:
            self._opened = fsspec.core.url_to_fs(self._url)
        files, root = self._opened
        if is_on_disk(files) and not files.isdir(root):
            raise NotADirectoryError("there is no such folder. Make it, or mount the volume")
        files.invalidate_cache()  # other machines write there too
        return self._opened

    def _read(self, version: str, name: str, folder: Path, left: int) -> int:
        """Copy one file of at most `left` bytes; returns its size."""
        size = 0
        with (folder / name).open("wb") as copy:
            try:
                for chunk in self._chunks(version, name):
                    size += len(chunk)
                    if size > left:
                        raise self._too_large(version)
                    copy.write(chunk)
            except FileNotFoundError:
                (folder / name).unlink()
                raise
        return size

    def _chunks(self, version: str, name: str) -> Iterator[bytes]:
        with self._accessing(may_be_missing=True):
            path, files = f"{self._folder(version)}/{name}", self._open()[0]
            info = files.info(path)
            if info["type"] != "file" or info.get("islink"):  # a link would lead out of the store
                raise CheckError(f"{self.place(version)}/{name}: is not a regular file.", code="files_unexpected")
            with files.open(path, "rb") as source:
                while chunk := source.read(CHUNK):
                    yield chunk

    def _problem(self, folder: Path, version: str) -> str | None:
        """Read the version back beside `folder`. Returns why it is not whole in the store; None if it is."""
        try:
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
                try:
                    self.copy_out(version, Path(work))
                    read_folder(Path(work))
                except (NotFoundError, CheckError) as error:
                    return error.message.replace(work, self.place(version))
        except OSError as error:
            raise disk_refusal(folder.parent, error) from error
        return None

    def _write(self, source: Path, target: str) -> None:
        """Write a file that appears whole or not at all. Objects do so by themselves; files are renamed into place."""
        files = self._open()[0]
        if files.async_impl:  # object stores: some would make a bucket when asked for a folder
            files.put_file(str(source), target)
            return
        folder, _, name = target.rpartition("/")
        unfinished = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}"
        files.makedirs(folder, exist_ok=True)
        try:
            files.put_file(str(source), unfinished)
            files.mv(unfinished, target)
        except BaseException:
            with suppress(Exception):
                files.rm_file(unfinished)
            raise

    def _remove_unfinished(self, version: str) -> None:
        """Remove what killed publishers left. One that is still at work finds that the version is complete."""
        with suppress(Exception):
            files = self._open()[0]
            for path in [] if files.async_impl else files.ls(self._folder(version), detail=False):
                if path.rpartition("/")[2].startswith("."):
                    files.rm_file(path)

    @contextmanager
    def _accessing(self, may_be_missing: bool = False) -> Iterator[None]:
        """Any error in the block, from whichever library, is reported as the store's."""
        try:
            yield
        except PolytoneError:
            raise
        except Exception as error:
            if may_be_missing and isinstance(error, FileNotFoundError):
                raise
            raise self._unavailable(self._without_secrets(str(error)) or type(error).__name__) from None

    def _unavailable(self, problem: str) -> UnavailableError:
        return UnavailableError(
            f"The adapter store {self} ({SETTING}) cannot be used now: {problem}.", code="store_unavailable"
        )

    def _too_large(self, version: str) -> CheckError:
        return CheckError(
            f"{version} has more than {self._limit} bytes, the most that a server takes (POLYTONE_MAX_UPLOAD_BYTES).",
            code="version_too_large",
        )

    def _without_secrets(self, text: str) -> str:
        parts = urlsplit(self._url)
        for secret in (self._url, parts.netloc.rpartition("@")[0], parts.password, parts.query):
            if secret:
                text = text.replace(secret, str(self) if secret == self._url else "...")
        return text


def is_on_disk(files: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(files, LocalFileSystem)
