"""An uploaded adapter: an archive nobody trusts -> a version folder, or every reason why not.

Nothing of the archive is executed, linked or placed by its own word: regular files of known names are copied out,
counted while they are unpacked, checked, and renamed into place whole.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from polytone.contract.base import Base
from polytone.contract.errors import CheckError, combined
from polytone.contract.files import folder_written_whole
from polytone.contract.home import Home
from polytone.contract.manifest import Manifest
from polytone.contract.names import check_name

from .archive import unpack
from .validation import inspect_received


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


def without_folder(found: list[CheckError], folder: Path) -> CheckError:
    """The reasons, naming files as the sender knows them."""
    for error in found:
        error.message = error.message.replace(f"{folder}/", "").replace(str(folder), "the archive")
    return combined(found)
