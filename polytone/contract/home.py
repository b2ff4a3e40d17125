"""The layout of POLYTONE_HOME on disk."""

from dataclasses import dataclass
from pathlib import Path

from .version_id import VersionId


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
        return self.adapters / VersionId.parse(version).path
