"""Runs of small recipes on the tiny base, for the tests of training."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console

from polytone.contract.export import ExportManifest
from polytone.contract.home import Home
from polytone.contract.manifest import Manifest
from polytone.progress import Progress
from polytone.train.publish import publish
from polytone.train.recipe import read_recipe
from polytone.train.run import Run, run

TRAINING = {"max_steps": 6, "epochs": 20, "batch": 4, "micro_batch": 4, "learning_rate": 0.02}
Json = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    run: Run
    manifest: Manifest


def silent() -> Progress:
    return Progress(Console(quiet=True))


def conversations(word: str) -> list[Json]:
    """The rows of the tiny voices."""
    return [{"messages": [user(f"question {number}"), said(f"{word} {number}")]} for number in range(10)]


def verdicts(good: str, bad: str, count: int = 12) -> list[Json]:
    """Alternately a good and a bad reply, to a question each."""
    return [
        {
            "prompt": [user(f"question {number}")],
            "completion": [said(f"{bad if number % 2 else good} {number}")],
            "label": number % 2 == 0,
            "completion_id": f"chatcmpl-{number}",
        }
        for number in range(count)
    ]


def preferences(chosen: str, rejected: str, count: int = 12) -> list[Json]:
    """Two replies to a question each."""
    return [
        {
            "prompt": [user(f"question {number}")],
            "chosen": [said(f"{chosen} {number}!")],
            "rejected": [said(f"{rejected} {number}")],
        }
        for number in range(count)
    ]


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def said(text: str) -> Json:
    return {"role": "assistant", "content": text}


def write_rows(folder: Path, rows: list[Json], name: str = "rows.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train_rows(root: Path, home: Home, name: str, rows: list[Json], **sections: Any) -> Trained:
    """Train on rows as `polytone train` would; `sections` are the recipe's, `training` on top of a few fast steps."""
    recipe = write_recipe(root / name, name, rows, **sections)
    done = run(home, read_recipe(recipe), silent())
    return Trained(done, publish(home, done))


def write_recipe(folder: Path, name: str, rows: list[Json], **sections: Any) -> Path:
    """A recipe for the tiny base beside its rows, `training` on top of a few fast steps."""
    write_rows(folder, rows)
    recipe = {
        "name": name,
        "base": "tiny",
        "data": {"train": "rows.jsonl", "held_out_share": 0.2},
        "drift": {"rows": 0},
        **sections,
        "training": {**TRAINING, **sections.get("training", {})},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def bare_home(bases: Path, root: Path) -> Home:
    """A home with the prepared bases of another and nothing else, so that runs are one test's."""
    shutil.copytree(bases, root / "home" / "bases")
    return Home(root / "home")


def export_of(rows: Path, kind: Literal["sft", "kto", "dpo"], completions: list[str]) -> ExportManifest:
    """The manifest that an export of these rows would have."""
    return ExportManifest(
        format=kind,
        split="train",
        sha256=hashlib.sha256(rows.read_bytes()).hexdigest(),
        rows=len(completions),
        adapter="acme",
        completions=completions,
        left_out={"thumbs disagree": 1},
        filters={},
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )
