"""Uploads: turn an archive that nobody trusts into a version folder, or refuse it with every reason.

The archive decides nothing: regular files with expected names are copied out and counted, checked, and renamed into
place as a whole. Links are not followed and nothing is executed.
"""

import shutil
import tempfile
from pathlib import Path

from polytone.contract.errors import CheckError, combined
from polytone.contract.files import folder_written_whole
from polytone.contract.manifest import Manifest
from polytone.contract.names import check_name

from .archive import unpack
from .store import AdapterStore
from .validation import ServedBase, inspect_received


def receive_version(
    archive: Path, voice: str, served: ServedBase, limit: int, store: AdapterStore | None = None
) -> Manifest:
    """Check an uploaded tar.gz and write it as a version of `voice`. The same version again changes nothing.

    Args:
        limit: the most bytes the archive may unpack to.
        store: gets the files first. Where it has the version already, the home is left alone: every replica answers
            with the store's files, and this one fetches them.

    Raises:
        CheckError: every reason why it is refused; nothing is left behind.
        StorageError: `disk_full`.
        UnavailableError: `store_unavailable`; nothing is left behind in the home.
    """
    check_name(voice)
    home = served.home
    home.adapters.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".upload.", dir=home.adapters) as work:
        folder = Path(work) / "upload"
        folder.mkdir()
        manifest, problems = inspect_archive(archive, folder, voice, served, limit)
        if manifest is None or problems:
            raise without_folder(problems, folder)
        if store is None or store.put(folder, manifest.version):
            with folder_written_whole(home.adapter_folder(manifest.version)) as target:
                for file in folder.iterdir():
                    shutil.copyfile(file, target / file.name)
    return manifest


def inspect_archive(
    archive: Path, folder: Path, voice: str, served: ServedBase, limit: int
) -> tuple[Manifest | None, list[CheckError]]:
    """Unpack into `folder` and check what came out."""
    problems = list(unpack(archive, folder, limit))
    return (None, problems) if problems else inspect_received(folder, voice, served)


def without_folder(problems: list[CheckError], folder: Path) -> CheckError:
    """All problems as one error that names files as the sender knows them."""
    for error in problems:
        error.message = error.message.replace(f"{folder}/", "").replace(str(folder), "the archive")
    return combined(problems)
