"""Folders of a home copied into a backup, once each."""

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

from .dump import Tell
from .files import alike, copy_files, files_in, hash_file
from .manifest import Backup, StoredBase, StoredFolder, StoredVersion


class Copies:
    """Copies folders of a home into a backup, once each."""

    def __init__(self, home: Home, store: AdapterStore | None, folder: Path, earlier: Backup | None) -> None:
        self._home = home
        self._store = store
        self._folder = folder
        self._known = dict(earlier.folders()) if earlier is not None else {}
        self.left_out: dict[str, str] = {}

    def versions(self, recorded: dict[str, str], tell: Tell) -> dict[str, StoredVersion]:
        """Every version that is `recorded` in the database or lies in the home."""
        stored: dict[str, StoredVersion] = {}
        wanted = sorted({*recorded, *list_versions(self._home)})
        for number, version in enumerate(wanted):
            tell(f"Copying versions ({number + 1} of {len(wanted)})", 0, 0)
            try:
                found = self._version(version)
            except (InputError, NotFoundError, CheckError, UnavailableError) as error:
                self.left_out[version] = error.message
                continue
            digest = read_manifest(self._folder / found.folder).digest
            stored[version] = StoredVersion(
                folder=found.folder, files=found.files, digest=digest, state=recorded.get(version)
            )
        return stored

    def evaluations(self, tell: Tell) -> dict[str, StoredFolder]:
        names = sorted(path.name for path in self._home.evaluations.glob("*/") if not path.name.startswith("."))
        return {
            name: self._kept(f"evaluations/{name}", self._home.evaluations / name, tell, "Copying evaluations")
            for name in names
        }

    def bases(self, whole: bool, tell: Tell) -> dict[str, StoredBase]:
        stored: dict[str, StoredBase] = {}
        for name in list_bases(self._home):
            try:
                base = load_base(self._home, name)
            except CheckError as error:
                self.left_out[name] = error.message
                continue
            source, title = self._home.bases / name, f"Copying the base {name}"
            stored[name] = StoredBase(
                base=base, weights=self._kept(f"bases/{name}", source, tell, title) if whole else None
            )
        return stored

    def _version(self, version: str) -> StoredFolder:
        """Raises: InputError, NotFoundError, CheckError or UnavailableError: why it cannot be saved."""
        source = self._home.adapter_folder(version)
        place = f"adapters/{VersionId.parse(version).path}"

        def check(copy: Path) -> None:
            if (found := read_folder(copy).version) != version:
                raise CheckError(f"{source}: holds {found}.", code="wrong_digest")

        if (source / MANIFEST).is_file():
            try:
                return self._there(place, source, check) or self._copied(
                    place, lambda work: copy_files(source, work), check, source
                )
            except CheckError:  # damaged here; a whole one was saved before, or is in the store
                if (known := self._there(place, None, check)) is None and self._store is None:
                    raise
        else:
            known = self._there(place, None, check)
        if known is not None:
            return known
        if self._store is not None:
            store = self._store
            return self._copied(place, lambda work: store.copy_out(version, work), check, store.place(version))
        raise NotFoundError(f"{source}: is not there.", code="version_not_found")

    def _kept(self, place: str, source: Path, tell: Tell, title: str) -> StoredFolder:
        if (known := self._there(place, source, lambda _: None)) is not None:
            return known
        done, total = 0, sum(path.stat().st_size for path in files_in(source).values())

        def moved(count: int) -> None:
            nonlocal done
            done += count
            tell(title, done, total)

        return self._copied(place, lambda work: copy_files(source, work, moved), lambda _: None, source)

    def _there(self, place: str, source: Path | None, check: Callable[[Path], None]) -> StoredFolder | None:
        """The copy that an earlier backup made of `source` (None: of what is gone now); None where there is none."""
        known = self._known.get(place)
        copy = self._folder / (known.folder if known is not None else place)
        if not copy.is_dir() or (source is not None and not alike(source, copy)):
            return None
        if known is not None:
            return StoredFolder(folder=known.folder, files=known.files)
        try:  # of a backup that was cut off, or that is not the last one
            check(copy)
        except CheckError:
            return None
        return StoredFolder(folder=place, files={name: hash_file(path) for name, path in files_in(copy).items()})

    def _copied(
        self, place: str, fill: Callable[[Path], None], check: Callable[[Path], None], source: Path | str
    ) -> StoredFolder:
        target = unused_folder(self._folder / place)  # one that is there is another backup's, and stays
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
