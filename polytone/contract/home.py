"""Where things lie on disk: the layout of POLYTONE_HOME."""

import re
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError

NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,62}"
DIGEST_LENGTH = 12


@dataclass(frozen=True)
class Home:
    """The folder that holds bases, adapters, runs and the database."""

    root: Path

    @property
    def bases(self) -> Path:
        return self.root / "bases"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def sweeps(self) -> Path:
        return self.root / "sweeps"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluations"

    @property
    def database_url(self) -> str:
        return f"sqlite:///{(self.root / 'polytone.db').absolute()}"

    def adapter_folder(self, version: str) -> Path:
        name, digest = split_version(version)
        return self.adapters / name / digest


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if it can stand in a path, a URL and a metric label.

    Raises:
        InputError: `invalid_name`.
    """
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise InputError(
            f"{what} {name!r} is not allowed: use 1 to 63 lower-case letters, digits, '.', '_' or '-', "
            "starting with a letter or digit.",
            code="invalid_name",
            param=what,
        )
    return name


def split_version(version: str) -> tuple[str, str]:
    """Split `name@digest12` into its two parts.

    Raises:
        InputError: `invalid_version`.
    """
    name, _, digest = version.partition("@")
    if re.fullmatch(NAME_PATTERN, name) is None or re.fullmatch(r"[0-9a-f]{12}", digest) is None:
        raise InputError(
            f"{version!r} is not a version id; a version is named like acme@3f2a91c0de12.",
            code="invalid_version",
            param="version",
        )
    return name, digest
