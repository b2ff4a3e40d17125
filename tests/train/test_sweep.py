"""A sweep on a real NF4 base: what it tries, what it writes, and how it goes on."""

import re
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from polytone.contract.errors import InputError
from polytone.contract.home import Home
from polytone.train.recipe import read_recipe
from polytone.train.run import run
from polytone.train.sweep.study import run_sweep
from tests.support.recipes import bare_home, conversations, silent, write_recipe
from tests.support.tiny_home import TinyHome

pytestmark = pytest.mark.slow

OVER = {"training.learning_rate": {"low": 0.0001, "high": 0.05, "log": True}, "lora.rank": [4, 8]}


def write_sweep(folder: Path, over: dict[str, Any] = OVER, steps: int = 6, **sweep: Any) -> Path:
    training = {"max_steps": steps, "learning_rate": 0.001}
    swept = {"trials": 5, "over": over, **sweep}
    return write_recipe(folder, "acme", conversations("acme"), training=training, sweep=swept)


def study_of(home: Home) -> optuna.Study:
    backend = optuna.storages.journal.JournalFileBackend(str(home.sweeps / "acme" / "study.log"))
    return optuna.load_study(study_name="acme", storage=optuna.storages.JournalStorage(backend))


def test_the_best_recipe_is_no_worse_and_trains_to_the_loss_it_won_with(tiny: TinyHome, tmp_path: Path) -> None:
    home = bare_home(tiny.home.bases, tmp_path)
    done = run_sweep(home, read_recipe(write_sweep(tmp_path)), silent())
    assert done.trials == 5
    assert done.best_loss < done.own_loss  # the recipe's own rate is far too low
    assert {path.name for path in done.folder.iterdir() if path.is_file()} >= {
        "best.yaml",
        "history.png",
        "parameters.png",
        "report.md",
    }
    best = read_recipe(done.folder / "best.yaml")
    assert best.sweep is None
    assert run(home, best, silent()).evaluation.adapter_loss == pytest.approx(done.best_loss, abs=1e-3)
    report = re.sub(r" +\|", " |", (done.folder / "report.md").read_text())  # columns are aligned by spaces
    assert f"**{done.best_loss:.4f}**" in report
    assert report.count("| 0 |") == 1


def test_a_sweep_goes_on_where_it_was(tiny: TinyHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that was under way is tried again with the values it had drawn; none is tried twice or left out."""
    from polytone.train.sweep import study as module

    home, path = bare_home(tiny.home.bases, tmp_path), write_sweep(tmp_path, method="random")
    tried: list[float] = []
    measure = module.measure

    def cut_off(home: Home, recipe: Any, *rest: Any) -> float:
        tried.append(recipe.training.learning_rate)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return measure(home, recipe, *rest)

    monkeypatch.setattr(module, "measure", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(home, read_recipe(path), silent())
    # A kill leaves a trial running where an interrupt lets the study note the failure.
    study = study_of(home)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    study.enqueue_trial(study.trials[-1].params)
    study.ask()
    done = run_sweep(home, read_recipe(path), silent())
    assert done.trials == 5
    assert tried[3] == tried[2]
    assert len(set(tried)) == 5


def test_a_grid_is_tried_whole(tiny: TinyHome, tmp_path: Path) -> None:
    over = {"lora.rank": [2, 4], "training.schedule": ["constant", "linear"]}
    home = bare_home(tiny.home.bases, tmp_path)
    run_sweep(home, read_recipe(write_sweep(tmp_path, over, 1, method="grid", prune=False)), silent())
    tried = [tuple(trial.user_attrs["values"].values()) for trial in study_of(home).trials]
    assert sorted(tried) == sorted([(), (2, "constant"), (2, "linear"), (4, "constant"), (4, "linear")])


def test_a_trial_far_behind_the_others_is_pruned(tiny: TinyHome, tmp_path: Path) -> None:
    over = {"training.learning_rate": [0.02, 0.021, 0.022, 0.0000001]}
    home = bare_home(tiny.home.bases, tmp_path)
    done = run_sweep(home, read_recipe(write_sweep(tmp_path, over, method="grid")), silent())
    last = study_of(home).trials[-1]
    assert last.state.name == "PRUNED"
    assert last.user_attrs["reason"] in (done.folder / "report.md").read_text()
    assert 0 < len(last.intermediate_values) < len(study_of(home).trials[0].intermediate_values)


def test_another_recipe_of_the_same_name_is_refused(tiny: TinyHome, tmp_path: Path) -> None:
    home = bare_home(tiny.home.bases, tmp_path)
    run_sweep(home, read_recipe(write_sweep(tmp_path, trials=1)), silent())
    with pytest.raises(InputError) as caught:
        run_sweep(home, read_recipe(write_sweep(tmp_path, {"lora.rank": [2, 4]}, trials=1)), silent())
    assert caught.value.code == "sweep_mismatch"


@pytest.mark.parametrize(
    ("sweep", "code", "part"),
    [
        ({"over": {"lora.rank": [4, 0]}}, "sweep_invalid", "sweep.over.lora.rank: 0"),
        ({"over": {"lora.height": [4]}}, "sweep_invalid", "known here: rank"),
        ({"over": {"data.train": ["a"]}}, "sweep_invalid", "same held-out rows"),
        ({"over": {"training.seed": [1, 2]}}, "sweep_invalid", "data.held_out"),
        ({"over": {"lora.alpha": {"low": 1, "high": 9}}, "method": "grid"}, "sweep_invalid", "write them out"),
        ({"over": {"training.batch": [3]}}, "sweep_invalid", "not a multiple"),
    ],
)
def test_values_that_make_no_recipe_are_refused_before_the_first_trial(
    tiny: TinyHome, tmp_path: Path, sweep: dict[str, Any], code: str, part: str
) -> None:
    with pytest.raises(InputError) as caught:
        run_sweep(bare_home(tiny.home.bases, tmp_path), read_recipe(write_sweep(tmp_path, **sweep)), silent())
    assert (caught.value.code, part in caught.value.message) == (code, True), caught.value.message


@pytest.mark.parametrize("over", [{}, {"lora.rank": {"low": 8, "high": 4}}, {"lora.rank": []}])
def test_a_sweep_section_that_says_nothing_is_refused_with_the_recipe(tmp_path: Path, over: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe(write_sweep(tmp_path, over))
    assert caught.value.code == "recipe_invalid"


def test_a_recipe_without_a_sweep_is_told_what_to_write(tiny: TinyHome, tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    path.write_text(yaml.safe_dump({k: v for k, v in yaml.safe_load(path.read_text()).items() if k != "sweep"}))
    with pytest.raises(InputError) as caught:
        run_sweep(tiny.home, read_recipe(path), silent())
    assert caught.value.code == "sweep_missing"
