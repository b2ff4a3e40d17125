"""The record of a run: what it began with, kept in its folder so that an interrupted run can be continued."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from polytone.contract.base import Base
from polytone.contract.errors import InputError
from polytone.contract.files import unused_folder, write_whole
from polytone.contract.home import Home
from polytone.contract.manifest import Data, Manifest
from polytone.contract.models import FrozenModel
from polytone.contract.rows import Conversation
from polytone.train.recipe import Recipe

from .checkpoints import CHECKPOINTS, newest_checkpoint, step_of
from .metrics import METRICS, last_step

RECORD, CHECKS, HELD_OUT = "run.json", "checks.json", "held_out.jsonl"
# The parts of a recipe that a run's numbers depend on. Gates, for example, only judge them.
DECISIVE = ("base", "parent", "system_prompt", "lora", "training", "drift", "sampling")


class RunRecord(FrozenModel, populate_by_name=True):
    """The content of run.json; `version` is the version that the run became, None until it is published."""

    schema_: Literal["polytone.run/1"] = Field("polytone.run/1", alias="schema")
    recipe: dict[str, Any]
    base_digest: str
    train_sha256: str
    held_out_sha256: str
    version: str | None = None


@dataclass(frozen=True)
class RunState:
    """How far a run got: optimizer steps taken, in all, and at its last whole checkpoint (None for none)."""

    step: int
    steps: int
    checkpoint: int | None


class Interrupted(KeyboardInterrupt):
    """A run that was interrupted in `folder`; its steps are in `state`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.state = state_of(folder)


def record_of(recipe: Recipe, base: Base, data: Data) -> RunRecord:
    return RunRecord(
        recipe=recipe.record(),
        base_digest=base.digest,
        train_sha256=data.train.sha256,
        held_out_sha256=data.held_out.sha256,
    )


def begin(home: Home, recipe: Recipe, record: RunRecord) -> Path:
    """A new folder of the run's own with its record in it."""
    folder = unused_folder(home.runs / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder.mkdir(parents=True)
    write_record(folder, record)
    return folder


def resumable(home: Home, recipe: Recipe, record: RunRecord) -> Path:
    """The newest run of the recipe's voice that did not become a version.

    Raises:
        InputError: `nothing_to_resume`, or `resume_mismatch` if recipe, base or data are not those it began with.
    """
    folder = newest_open_run(home, recipe.name)
    if folder is None:
        raise InputError(
            f"There is no unfinished run of {recipe.name} under {home.runs}. Train without --resume.",
            code="nothing_to_resume",
            param="resume",
        )
    old = read_record(folder)
    if old is not None and (changed := differences(old, record)):
        raise InputError(
            f"{folder}: cannot be continued, because {', '.join(changed)} changed after it began. Train without "
            "--resume, or restore what it began with.",
            code="resume_mismatch",
            param=changed[0],
        )
    return folder


def newest_open_run(home: Home, name: str) -> Path | None:
    """The newest run of a voice that did not become a version."""
    records = [(folder, read_record(folder)) for folder in home.runs.glob(f"{name}-*")]
    folders = [
        folder for folder, record in records if record and record.version is None and record.recipe.get("name") == name
    ]
    return max(folders, key=lambda folder: (folder / RECORD).stat().st_mtime_ns, default=None)


def state_of(folder: Path) -> RunState:
    checkpoint = newest_checkpoint(folder / CHECKPOINTS)
    try:
        steps = int(json.loads((folder / CHECKS).read_text())["steps"])
    except (OSError, ValueError, KeyError):  # interrupted before its checks were written
        steps = 0
    return RunState(last_step(folder / METRICS), steps, None if checkpoint is None else step_of(checkpoint))


def differences(old: RunRecord, new: RunRecord) -> list[str]:
    """Dotted names of everything that decides a run's numbers and differs."""
    changed = [
        name for name in ("base_digest", "train_sha256", "held_out_sha256") if vars(old)[name] != vars(new)[name]
    ]
    for key in DECISIVE:
        one, other = old.recipe.get(key), new.recipe.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            changed += [f"{key}.{name}" for name in {**one, **other} if one.get(name) != other.get(name)]
        elif one != other:
            changed.append(key)
    return changed


def write_held_out(folder: Path, conversations: list[Conversation]) -> None:
    """Keep the held-out conversations, so that the version can be evaluated on them later."""
    write_whole(folder / HELD_OUT, "".join(row.model_dump_json() + "\n" for row in conversations))


def held_out_file(home: Home, manifest: Manifest) -> Path | None:
    """The conversations that the run of a version held out; None where that run is not under this home."""
    for folder in home.runs.glob(f"{manifest.name}-*"):
        record = read_record(folder)
        if record is not None and record.version == manifest.version and (folder / HELD_OUT).is_file():
            return folder / HELD_OUT
    return None


def read_record(folder: Path) -> RunRecord | None:
    try:
        return RunRecord.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def close(folder: Path, version: str) -> None:
    """Record the version that the run became; it cannot be resumed after that."""
    record = read_record(folder)
    if record is not None:
        write_record(folder, record.model_copy(update={"version": version}))


def write_record(folder: Path, record: RunRecord) -> None:
    write_whole(folder / RECORD, record.model_dump_json(by_alias=True, indent=2) + "\n")
