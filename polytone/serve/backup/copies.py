"""Copy the folders of a home into a backup, each of them once."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from polytone.contract.adapter import list_versions, read_folder
from polytone.contract.base import list_bases, load_base
from polytone.contract.errors import CheckError, InputError, NotFoundError, UnavailableError
from polytone.contract.files import folder_written_whole, unused_folder
from polytone.contract.home import Home
from polytone.contract.manifest import MANIFEST, read_manifest
from polytone.contract.version_id import VersionId
from polytone.serve.adapters.store import AdapterStore

from .dump import Report
from .files import alike, copy_files, files_in, hash_file
from .manifest import Backup, StoredBase, StoredFolder, StoredVersion


class Copies:
    """Copies folders of a home into a backup, except for those that an earlier backup copied already.

    `left_out` says why a version or base could not be saved.
    """

    def __init__(self, home: Home, store: AdapterStore | None, folder: Path, earlier: Backup | None) -> None:
        self._home = home
        self._store = store
        self._folder = folder
        self._known = dict(earlier.folders()) if earlier is not None else {}
        self.left_out: dict[str, str] = {}

    def versions(self, recorded: dict[str, str], report: Report) -> dict[str, StoredVersion]:
        """Copy every version that is `recorded` in the database or present in the home."""
        stored: dict[str, StoredVersion] = {}
        versions = sorted({*recorded, *list_versions(self._home)})
        for number, version in enumerate(versions):
            report(f"Copying versions ({number + 1} of {len(versions)})", 0, 0)
            try:
                copy = self._copy_version(version)
            except (InputError, NotFoundError, CheckError, UnavailableError) as error:
                self.left_out[version] = error.message
                continue
            digest = read_manifest(self._folder / copy.folder).digest
            stored[version] = StoredVersion(
                folder=copy.folder, files=copy.files, digest=digest, state=recorded.get(version)
            )
        return stored

    def evaluations(self, report: Report) -> dict[str, StoredFolder]:
        names = sorted(path.name for path in self._home.evaluations.glob("*/") if not path.name.startswith("."))
        return {
            name: self._copy_or_reuse(
                f"evaluations/{name}", self._home.evaluations / name, report, "Copying evaluations"
            )
            for name in names
        }

    def bases(self, whole: bool, report: Report) -> dict[str, StoredBase]:
        stored: dict[str, StoredBase] = {}
        for name in list_bases(self._home):
            try:
                base = load_base(self._home, name)
            except CheckError as error:
                self.left_out[name] = error.message
                continue
            source, title = self._home.bases / name, f"Copying the base {name}"
            stored[name] = StoredBase(
                base=base, weights=self._copy_or_reuse(f"bases/{name}", source, report, title) if whole else None
            )
        return stored

    def _copy_version(self, version: str) -> StoredFolder:
        """Copy one version, from the home or else from the store.

        Raises:
            InputError, NotFoundError, CheckError, UnavailableError: why it cannot be saved.
        """
        source = self._home.adapter_folder(version)
        place = f"adapters/{VersionId.parse(version).path}"

        def check(copy: Path) -> None:
            if (held := read_folder(copy).version) != version:
                raise CheckError(f"{source}: holds {held}, not {version}.", code="wrong_digest")

        if (source / MANIFEST).is_file():
            try:
                return self._existing_copy(place, source, check) or self._copy(
                    place, lambda work: copy_files(source, work), check, source
                )
            except CheckError:  # damaged here; an earlier backup or the store may have a whole copy
                if (existing := self._existing_copy(place, None, check)) is None and self._store is None:
                    raise
        else:
            existing = self._existing_copy(place, None, check)
        if existing is not None:
            return existing
        if self._store is not None:
            store = self._store
            return self._copy(place, lambda work: store.copy_out(version, work), check, store.place(version))
        raise NotFoundError(f"{source}: does not exist.", code="version_not_found")

    def _copy_or_reuse(self, place: str, source: Path, report: Report, title: str) -> StoredFolder:
        if (existing := self._existing_copy(place, source, lambda _: None)) is not None:
            return existing
        done, total = 0, sum(path.stat().st_size for path in files_in(source).values())

        def moved(count: int) -> None:
            nonlocal done
            done += count
            report(title, done, total)

        return self._copy(place, lambda work: copy_files(source, work, moved), lambda _: None, source)

    def _existing_copy(self, place: str, source: Path | None, check: Callable[[Path], None]) -> StoredFolder | None:
        """The copy that an earlier backup made of `source`, or None.

        Args:
            source: the folder to compare it with; None if it is gone, so that any copy will do.
        """
        existing = self._known.get(place)
        copy = self._folder / (existing.folder if existing is not None else place)
        if not copy.is_dir() or (source is not None and not alike(source, copy)):
            return None
        if existing is not None:
            return StoredFolder(folder=existing.folder, files=existing.files)
        try:  # made by a backup that was interrupted, or by one before the last
            check(copy)
        except CheckError:
            return None
        return StoredFolder(folder=place, files={name: hash_file(path) for name, path in files_in(copy).items()})

    def _copy(
        self, place: str, fill: Callable[[Path], None], check: Callable[[Path], None], source: Path | str
    ) -> StoredFolder:
        target = unused_folder(self._folder / place)  # a folder of that name belongs to another backup and stays
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
