"""Voices to measure with: trained for a few steps on the examples, once, in a home folder of their own.

How fast a voice answers does not depend on how well it was trained. Many voices are copies of these under other names;
the server does not know that, and checks, loads and keeps each for itself.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from polytone.contract.adapter import WEIGHTS, list_versions
from polytone.contract.home import Home
from polytone.contract.manifest import MANIFEST
from polytone.contract.version_id import VersionId, voice_of

from .running import home_from_environment

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SEEDS = {
    "bench-a": ("aldermoor", 1),
    "bench-b": ("driftpepper", 2),
    "bench-c": ("mosswick", 3),
    "bench-d": ("aldermoor", 4),
}
BASE = "smollm2-135m-instruct"
STEPS = 3
ROWS = 32


def bench_home() -> Home:
    return Home(home_from_environment().root / "bench")


def prepare(home: Home) -> list[str]:
    """The ids of four versions with the base under them; made where they are missing."""
    polytone(home, "base", "prepare", BASE)
    for name, (brand, seed) in SEEDS.items():
        if not any(version.startswith(f"{name}@") for version in list_versions(home)):
            train(home, name, brand, seed)
    return [version for version in list_versions(home) if voice_of(version) in SEEDS]


def train(home: Home, name: str, brand: str, seed: int) -> None:
    folder = home.root / "recipes" / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(EXAMPLES / brand, folder)
    for file in ("train.jsonl", "held_out.jsonl"):
        lines = (folder / file).read_text().splitlines(keepends=True)
        (folder / file).write_text("".join(lines[: ROWS if file == "train.jsonl" else 4]))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe |= {
        "name": name,
        "training": {"max_steps": STEPS, "batch": 4, "micro_batch": 4, "evaluations": 0, "seed": seed},
        "drift": {"max_tokens": 32},
    }
    recipe["training"]["learning_rate"] = 0.002
    recipe.pop("system_prompt", None)  # the same prompt for voice and base
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    polytone(home, "train", str(folder / "recipe.yaml"))


def clones(home: Home, version: str, count: int, probes: int | None = None) -> list[str]:
    """`count` versions of other names with the weights of `version`; their files are linked, not copied.

    Args:
        probes: how many probes of the fingerprint to keep; with fewer, the first proof of many takes less time.
    """
    source = home.adapter_folder(version)
    digest = VersionId.parse(version).digest
    manifest = json.loads((source / MANIFEST).read_text())
    manifest["fingerprint"]["probes"] = manifest["fingerprint"]["probes"][:probes]
    made = []
    for number in range(count):
        name = f"clone-{number:03d}"
        folder = home.adapters / name / digest
        made.append(str(VersionId(name, digest)))
        if (folder / MANIFEST).is_file():  # it is written last
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in source.iterdir():
            if file.name == WEIGHTS:
                os.link(file, folder / file.name)
            elif file.name != MANIFEST:
                shutil.copy(file, folder / file.name)
        (folder / MANIFEST).write_text(json.dumps({**manifest, "name": name}))
    return made


def polytone(home: Home, *arguments: str) -> None:
    """Run a command of the command line; its progress goes to the terminal."""
    environment = {**os.environ, "POLYTONE_HOME": str(home.root)}
    done = subprocess.run([sys.executable, "-m", "polytone", *arguments], env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"polytone {' '.join(arguments)} ended with {done.returncode}")
