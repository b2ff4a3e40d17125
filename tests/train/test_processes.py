"""Several processes train one voice: the same rows, the same loss, one version."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from polytone.contract.errors import InputError
from polytone.contract.home import Home
from polytone.train.recipe import read_recipe
from polytone.train.run import run
from tests.support.recipes import bare_home, silent
from tests.support.tiny_home import TinyHome

from .test_resume import steps_in, write_long

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[2] / "deploy" / "accelerate" / "processes.yaml"


def test_two_processes_reach_the_loss_of_one(tiny: TinyHome, tmp_path: Path) -> None:
    home = bare_home(tiny.home.bases, tmp_path)
    recipe = write_long(tmp_path, max_steps=8)
    settings = yaml.safe_load(recipe.read_text())
    settings["lora"] = {"dropout": 0.0}  # each process draws its own
    recipe.write_text(yaml.safe_dump(settings))
    alone = run(bare_home(tiny.home.bases, tmp_path / "alone"), read_recipe(recipe), silent()).evaluation
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
    done = subprocess.run(
        [*launch, "-m", "polytone", "train", str(recipe), "--json", "--home", str(home.root)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["evaluation"]["adapter_loss"] == pytest.approx(alone.adapter_loss, abs=1e-3)
    assert len(list(Home(home.root).runs.iterdir())) == 1
    assert steps_in(home) == 8


def test_a_batch_that_cannot_be_shared_is_refused(
    tiny: TinyHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polytone.train.methods.common.world_size", lambda: 3)
    with pytest.raises(InputError) as caught:
        run(bare_home(tiny.home.bases, tmp_path), read_recipe(write_long(tmp_path)), silent())
    assert (caught.value.code, caught.value.param) == ("recipe_invalid", "training.batch")
    assert "multiple of 6" in caught.value.message
