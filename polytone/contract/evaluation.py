"""The verdict of an evaluation on a version, by the gates of its recipe.

`$POLYTONE_HOME/evaluations/<voice@digest12>.json` is the newest verdict on a version. Evaluation writes it and
promotion reads it. It is not in the version's folder because the content of that never changes.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field, ValidationError

from .errors import CheckError
from .files import write_whole
from .home import Home
from .models import FrozenModel, describe_problem
from .version_id import VersionId

Word: TypeAlias = Literal["good", "nothing learned", "damaged", "not good enough"]


class FailedGate(FrozenModel):
    """A gate, the figure that was measured and the bar that it missed; `message` says so in words.

    `gate` is a key of the recipe's `gates`, or `damaged` or `nothing_learned`, which no recipe can turn off.
    """

    gate: str
    figure: float
    bar: float
    message: str


class EvaluatedOn(FrozenModel):
    """The file of held-out rows."""

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rows: int
    tokens: int


class GateVerdict(FrozenModel):
    """The result of an evaluation, with every failed gate.

    `not_measured` maps gates that could not be measured to the reason; these do not fail.
    """

    version: str
    passed: bool
    verdict: Word
    reasons: list[FailedGate] = Field(default_factory=list)
    not_measured: dict[str, str] = Field(default_factory=dict)
    when: datetime = Field(default_factory=lambda: datetime.now(UTC))
    data: EvaluatedOn
    folder: str | None = None

    def in_words(self) -> list[str]:
        """A sentence for each failed gate."""
        return [f"{self.version}: {reason.message}" for reason in self.reasons]


def verdict_path(home: Home, version: str) -> Path:
    return home.evaluations / f"{VersionId.parse(version)}.json"


def write_verdict(home: Home, verdict: GateVerdict) -> Path:
    """Make this the newest verdict on its version. A reader sees the old file or the new one.

    Raises:
        StorageError: `disk_full` or `disk_error`; the earlier verdict stays.
    """
    path = verdict_path(home, verdict.version)
    write_whole(path, verdict.model_dump_json(indent=2) + "\n")
    return path


def read_verdict(home: Home, version: str) -> GateVerdict | None:
    """The newest verdict on a version; None if it was never evaluated on this machine.

    Raises:
        CheckError: `verdict_damaged`.
        InputError: `invalid_version`.
    """
    path = verdict_path(home, version)
    try:
        verdict = GateVerdict.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise damaged(path, describe_problem(error.errors()[0])) from None
    if verdict.version != version:
        raise damaged(path, f"it is of {verdict.version}")
    return verdict


def damaged(path: Path, why: str) -> CheckError:
    return CheckError(
        f"{path}: is not a verdict on this version ({why}). Run polytone evaluate again, or remove the file.",
        code="verdict_damaged",
    )
