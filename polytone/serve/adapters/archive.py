"""A version folder as the tar.gz that another server takes."""

import tarfile
from pathlib import Path

from polytone.contract.adapter import read_version
from polytone.contract.home import Home


def pack_version(home: Home, version: str, target: Path) -> None:
    """Write the files of a checked version; the same version gives the same members with no owner or time."""
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
