"""Versions that can only answer with their own marker, and what a soak test needs around them."""

import asyncio
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import httpx
import yaml
from rich.console import Console

from polytone.contract.adapter import CONFIG, digest_adapter
from polytone.contract.files import folder_written_whole
from polytone.contract.home import Home
from polytone.contract.manifest import MANIFEST, Manifest
from polytone.contract.version_id import voice_of
from polytone.progress import Progress
from polytone.train.publish import publish
from polytone.train.recipe import read_recipe
from polytone.train.run import run

STEPS = 25


def train_marked(root: Path, home: Home, voice: str, marker: str) -> Manifest:
    """Teach the tiny base to answer everything with `marker`; takes a few seconds."""
    folder = root / f"marked-{marker}"
    folder.mkdir(parents=True)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"question {number}"},
                {"role": "assistant", "content": " ".join([marker] * 12)},
            ]
        }
        for number in range(12)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = {
        "name": voice,
        "base": "tiny",
        "data": {"train": "rows.jsonl", "held_out_share": 0.2},
        "lora": {"rank": 8, "alpha": 16},
        "training": {"max_steps": STEPS, "epochs": 50, "batch": 4, "micro_batch": 4, "learning_rate": 0.02},
        "drift": {"rows": 0},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    progress = Progress(Console(quiet=True))
    return publish(home, run(home, read_recipe(folder / "recipe.yaml"), progress))


def restamped(home: Home, source: Manifest, number: int, name: str | None = None) -> Manifest:
    """Another version with the same weights: its configuration carries a number, so its digest is its own."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "copy"
        shutil.copytree(home.adapter_folder(source.version), folder)
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, "revision": str(number)}))
        manifest = source.model_copy(update={"digest": digest_adapter(folder), "name": name or source.name})
        (folder / MANIFEST).write_text(manifest.model_dump_json(by_alias=True))
        with folder_written_whole(home.adapter_folder(manifest.version)) as target:
            for file in folder.iterdir():
                shutil.copyfile(file, target / file.name)
    return manifest


def ask(marker_of: str, **more: Any) -> dict[str, Any]:
    return {"model": marker_of, "messages": [{"role": "user", "content": "question 3"}], "temperature": 0, **more}


async def until(condition: Any, seconds: float, pause: float = 0.1) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(pause)


async def ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


async def state_of(client: httpx.AsyncClient, version: str) -> str:
    name = voice_of(version)
    for adapter in (await client.get("/admin/adapters")).json()["adapters"]:
        if adapter["name"] == name:
            for one in adapter["versions"]:
                if one["version"] == version:
                    return str(one["state"])
    return "gone"
