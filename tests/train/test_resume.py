"""A run that was cut off goes on as if it had not been."""

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from polytone.cli.train import interruption
from polytone.contract.errors import InputError
from polytone.contract.home import Home
from polytone.progress import Progress
from polytone.train.job import read_job
from polytone.train.recipe import read_recipe
from polytone.train.run import run, run_folder
from polytone.train.runs.checkpoints import ADAPTER, LengthGroups, newest_checkpoint
from polytone.train.runs.metrics import drop_records_after
from polytone.train.runs.record import Interrupted, RunState, read_record, record_of
from tests.support.recipes import bare_home, conversations, silent, train_rows, write_recipe, write_rows
from tests.support.tiny_home import TinyHome

pytestmark = pytest.mark.slow

LONG = {"max_steps": 40, "epochs": 40, "learning_rate": 0.01, "evaluations": 4, "checkpoints": 10}


def write_long(folder: Path, **training: Any) -> Path:
    """Some epochs with dropout, evaluations and checkpoints, unless `training` says otherwise."""
    whole = {"batch": 4, "micro_batch": 2, **LONG, **training}
    return write_recipe(folder, "acme", conversations("acme"), lora={"dropout": 0.1}, training=whole)


def steps_in(home: Home) -> int:
    files = list(home.runs.glob("acme-*/metrics.jsonl"))
    return sum('"loss"' in line for file in files for line in file.read_text().splitlines())


def test_a_killed_run_reaches_the_same_held_out_loss(tiny: TinyHome, tmp_path: Path) -> None:
    """kill -9 at a random step, epochs and dropout and all: the batches and the random numbers come again."""
    home, recipe = bare_home(tiny.home.bases, tmp_path), write_long(tmp_path)
    undisturbed = run(
        bare_home(tiny.home.bases, tmp_path / "alone"), read_recipe(recipe), silent()
    ).evaluation.adapter_loss
    at = random.Random().randint(6, 30)
    command = [sys.executable, "-m", "polytone", "train", str(recipe), "--home", str(home.root)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        while steps_in(home) < at and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None, f"the run ended before step {at}"
        os.killpg(process.pid, signal.SIGKILL)
    folder = next(home.runs.glob("acme-*"))
    checkpoint = newest_checkpoint(folder / "checkpoints")
    assert checkpoint is not None, f"killed at step {at}"
    done = run(home, read_recipe(recipe), silent(), resume=True)
    assert done.folder == folder
    assert done.evaluation.adapter_loss == pytest.approx(undisturbed, abs=1e-3), f"killed at step {at}"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [one["step"] for one in records if "loss" in one] == list(range(1, 41))
    assert not (folder / "checkpoints").exists()


def test_ctrl_c_says_how_to_continue_and_resume_says_from_where(tiny: TinyHome, tmp_path: Path) -> None:
    """Ctrl-C printed not one word, `--resume` looked like a fresh start, and a new run left the old one unmentioned."""
    home, recipe = bare_home(tiny.home.bases, tmp_path), write_long(tmp_path, max_steps=400, epochs=400)
    command = [sys.executable, "-m", "polytone", "train", str(recipe), "--home", str(home.root)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not list(home.runs.glob("acme-*/checkpoints/checkpoint-40/trainer_state.json")):
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate()[1]
    assert process.returncode == 130
    assert "Traceback" not in errors
    place = re.search(
        rf"Interrupted at step (\d+) of 400. Continue from step (\d+): polytone train {recipe} --resume", errors
    )
    assert place is not None, errors
    step, checkpoint = map(int, place.groups())
    assert step >= checkpoint >= 40
    folder = next(home.runs.glob("acme-*"))
    for resume, expected in (
        (True, f"Continuing {folder} from step {checkpoint} of 400."),
        (False, f"This is a new run. An earlier one is unfinished at step {step} of 400: {folder}."),
    ):
        job = read_job(home, read_recipe(recipe))
        console = Console(file=io.StringIO(), width=1000)
        run_folder(home, job, record_of(job.recipe, job.base, job.prepared.data), resume, Progress(console))
        assert expected in console.file.getvalue()  # type: ignore[attr-defined]


def test_ctrl_c_before_the_first_checkpoint_says_that_it_starts_again(
    tiny: TinyHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    home, recipe = bare_home(tiny.home.bases, tmp_path), write_long(tmp_path, max_steps=4)
    monkeypatch.setattr("polytone.train.run.train_adapter", interrupt)
    with pytest.raises(Interrupted) as caught:
        run(home, read_recipe(recipe), silent())
    assert caught.value.state == RunState(step=0, steps=4, checkpoint=None)
    words = interruption(caught.value, recipe)
    assert words == (
        f"Interrupted at step 0 of 4, before the first checkpoint. Start again: polytone train {recipe} --resume"
    )


def test_a_run_cut_off_after_training_is_only_measured(
    tiny: TinyHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, recipe = bare_home(tiny.home.bases, tmp_path), write_long(tmp_path, max_steps=4)
    first = run(home, read_recipe(recipe), silent())
    monkeypatch.setattr("polytone.train.run.train_adapter", lambda *_: pytest.fail("trained again"))
    again = run(home, read_recipe(recipe), silent(), resume=True)
    assert (again.folder, again.evaluation) == (first.folder, first.evaluation)


def test_only_the_very_same_recipe_data_and_base_go_on(tiny: TinyHome, tmp_path: Path) -> None:
    home, recipe = bare_home(tiny.home.bases, tmp_path), write_long(tmp_path, max_steps=2)
    with pytest.raises(InputError) as caught:
        run(home, read_recipe(recipe), silent(), resume=True)
    assert caught.value.code == "nothing_to_resume"
    run(home, read_recipe(recipe), silent())
    write_long(tmp_path, max_steps=2, learning_rate=0.05)
    write_rows(tmp_path, conversations("zest"))
    with pytest.raises(InputError) as caught:
        run(home, read_recipe(recipe), silent(), resume=True)
    assert caught.value.code == "resume_mismatch"
    for changed in ("training.learning_rate", "train_sha256", "held_out_sha256"):
        assert changed in caught.value.message


def test_a_published_run_is_closed(tiny: TinyHome, tmp_path: Path) -> None:
    home = bare_home(tiny.home.bases, tmp_path)
    made = train_rows(tmp_path, home, "acme", conversations("acme"), training={"max_steps": 2})
    record = read_record(made.run.folder)
    assert record is not None
    assert record.version == made.manifest.version
    with pytest.raises(InputError) as caught:
        run(home, read_recipe(tmp_path / "acme" / "recipe.yaml"), silent(), resume=True)
    assert caught.value.code == "nothing_to_resume"


def test_a_half_written_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """The trainer writes its state last; a kill before that leaves a folder that would not load."""
    from safetensors.torch import save_file

    for step in (4, 12):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"a": torch.zeros(2)}, folder / ADAPTER)
        (folder / "optimizer.pt").touch()
        (folder / "trainer_state.json").write_text('{"global_step": 4}' if step == 4 else '{"glob')
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    (tmp_path / "checkpoint-4" / ADAPTER).write_bytes(b"\x08\x00")
    assert newest_checkpoint(tmp_path) is None


def test_records_of_steps_that_come_again_are_forgotten(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    drop_records_after(metrics, 1)
    assert metrics.read_text() == '{"step": 1, "loss": 3}\n'


def test_the_order_of_rows_follows_from_seed_and_epoch() -> None:
    lengths = [random.Random(0).randint(1, 99) for _ in range(50)]

    def order(seed: int, epoch: int) -> list[int]:
        sampler = LengthGroups(lengths, 4, seed)
        sampler.set_epoch(epoch)
        torch.manual_seed(random.Random().randint(0, 9))
        return list(sampler)

    assert order(1, 3) == order(1, 3)
    assert sorted(order(1, 3)) == list(range(50))
    assert len({tuple(order(seed, epoch)) for seed in (1, 9) for epoch in (0, 1)}) == 4
