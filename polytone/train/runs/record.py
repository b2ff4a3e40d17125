"""What a run is of, kept in its folder from its first moment, so that a run that was cut off can go on."""

import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from polytone.contract.base import Base
from polytone.contract.errors import InputError
from polytone.contract.files import unused_folder, write_whole
from polytone.contract.home import Home
from polytone.contract.manifest import Data
from polytone.contract.models import FrozenModel
from polytone.train.recipe import Recipe

RECORD = "run.json"
# What a run's numbers follow from. Sections such as gates say what is thought of them.
DECISIVE = ("base", "parent", "system_prompt", "lora", "training", "drift", "sampling")


class RunRecord(FrozenModel, populate_by_name=True):
    """The content of run.json; `version` is what the run became, None until it is published."""

    schema_: Literal["polytone.run/1"] = Field("polytone.run/1", alias="schema")
    recipe: dict[str, Any]
    base_digest: str
    train_sha256: str
    held_out_sha256: str
    version: str | None = None


def record_of(recipe: Recipe, base: Base, data: Data) -> RunRecord:
    return RunRecord(
        recipe=recipe.record(),
        base_digest=base.digest,
        train_sha256=data.train.sha256,
        held_out_sha256=data.held_out.sha256,
    )


def begin(home: Home, recipe: Recipe, record: RunRecord) -> Path:
    """A folder of the run's own with its record in it."""
    folder = unused_folder(home.runs / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder.mkdir(parents=True)
    write_record(folder, record)
    return folder


def unfinished(home: Home, recipe: Recipe, record: RunRecord) -> Path:
    """The newest run of the recipe's voice that did not become a version.

    Raises:
        InputError: `nothing_to_resume`, or `resume_mismatch` if recipe, base or data are not what that run began with.
    """
    runs = [(folder, read_record(folder)) for folder in home.runs.glob(f"{recipe.name}-*")]
    open_runs = [
        (folder, old) for folder, old in runs if old and old.version is None and old.recipe.get("name") == recipe.name
    ]
    if not open_runs:
        raise InputError(
            f"No unfinished run of {recipe.name} lies under {home.runs}. Train without --resume.",
            code="nothing_to_resume",
            param="resume",
        )
    folder, old = max(open_runs, key=lambda pair: (pair[0] / RECORD).stat().st_mtime_ns)
    if changed := differences(old, record):
        raise InputError(
            f"{folder}: cannot go on, since {', '.join(changed)} changed after it began. Train without --resume, or "
            "put back what it began with.",
            code="resume_mismatch",
            param=changed[0],
        )
    return folder


def differences(old: RunRecord, new: RunRecord) -> list[str]:
    """Dotted names of what decides a run's numbers and is not the same."""
    found = [name for name in ("base_digest", "train_sha256", "held_out_sha256") if vars(old)[name] != vars(new)[name]]
    for key in DECISIVE:
        one, other = old.recipe.get(key), new.recipe.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += [f"{key}.{name}" for name in {**one, **other} if one.get(name) != other.get(name)]
        elif one != other:
            found.append(key)
    return found


def read_record(folder: Path) -> RunRecord | None:
    try:
        return RunRecord.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def close(folder: Path, version: str) -> None:
    """Note what the run became; it cannot be resumed after that."""
    record = read_record(folder)
    if record is not None:
        write_record(folder, record.model_copy(update={"version": version}))


def write_record(folder: Path, record: RunRecord) -> None:
    write_whole(folder / RECORD, record.model_dump_json(by_alias=True, indent=2) + "\n")
