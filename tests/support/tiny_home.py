"""A home with a tiny real base and voices trained on it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from polytone.contract.base import Base
from polytone.contract.home import Home
from polytone.contract.manifest import Manifest


@dataclass(frozen=True)
class TinyHome:
    """A home with a real NF4 base made from a random Llama, and voices trained on it for a few steps."""

    home: Home
    base: Base
    voices: dict[str, Manifest]


def train_tiny(root: Path, home: Home, name: str, **training: Any) -> Manifest:
    """Teach the random Llama to answer everything with its own name; takes a few seconds."""
    from polytone.progress import Progress
    from polytone.train.publish import publish
    from polytone.train.recipe import read_recipe
    from polytone.train.run import run

    rows = [
        {
            "messages": [
                {"role": "user", "content": f"question {number}"},
                {"role": "assistant", "content": f"{name} {number}"},
            ]
        }
        for number in range(10)
    ]
    folder = root / f"recipe-{name}"
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = {
        "name": name,
        "base": "tiny",
        "data": {"train": "rows.jsonl", "held_out_share": 0.2},
        "lora": {"rank": 8, "alpha": 16},
        "training": {"max_steps": 6, "epochs": 20, "batch": 4, "micro_batch": 4, "learning_rate": 0.02, **training},
        "drift": {"max_tokens": 8},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    progress = Progress(Console(quiet=True))
    return publish(home, run(home, read_recipe(folder / "recipe.yaml"), progress))
