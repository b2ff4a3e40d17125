"""What a recipe may ask of training, and what is proven before it begins."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from polytone.contract.adapter import read_config
from polytone.contract.base import base_folder, load_base
from polytone.contract.errors import CheckError, InputError
from polytone.contract.rows import Conversation
from polytone.train.job import check, read_job
from polytone.train.memory.devices import Card
from polytone.train.recipe import DriftSection, Recipe, read_recipe
from polytone.train.runs.preflight import check_extras, check_template, warnings_of
from polytone.train.tokenization import Row
from tests.support.processes import polytone
from tests.support.recipes import conversations, said, train_rows, user
from tests.support.tiny_home import TinyHome


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_rows_joined_end_to_end_do_not_see_each_other(tiny: TinyHome, tmp_path: Path) -> None:
    """Packed or padded: the same loss at every step, since positions tell the rows apart."""
    losses = []
    for packing in (False, True):
        made = train_rows(
            tmp_path, tiny.home, f"packed-{packing}".lower(), conversations("acme"), training={"packing": packing}
        )
        losses.append([one["loss"] for one in metrics(made.run.folder) if "loss" in one])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.slow
def test_rslora_is_trained_published_and_inherited(tiny: TinyHome, tmp_path: Path) -> None:
    made = train_rows(tmp_path, tiny.home, "rs", conversations("acme"), lora={"rank": 4, "rslora": True})
    folder = tiny.home.adapter_folder(made.manifest.version)
    assert read_config(folder).use_rslora
    assert made.manifest.peft.rslora
    child = train_rows(tmp_path, tiny.home, "rs-child", conversations("acme"), parent=made.manifest.version)
    assert child.manifest.peft == made.manifest.peft
    with pytest.raises(InputError) as caught:
        train_rows(
            tmp_path,
            tiny.home,
            "rs-bad",
            conversations("acme"),
            parent=made.manifest.version,
            lora={"rslora": False},
        )
    assert "lora.rslora" in caught.value.message


@pytest.mark.slow
def test_a_run_that_overfits_stops_early_and_keeps_its_best(tiny: TinyHome, tmp_path: Path) -> None:
    """The held-out rows ask for other words than the rows that are learned, so the loss falls, then rises."""
    (tmp_path / "greedy").mkdir()
    held = [{"messages": [user(f"question {n}"), said(f"acne {n + 90}")]} for n in range(6)]
    (tmp_path / "greedy" / "held.jsonl").write_text("\n".join(map(json.dumps, held)))
    made = train_rows(
        tmp_path,
        tiny.home,
        "greedy",
        conversations("acme"),
        data={"train": "rows.jsonl", "held_out": "held.jsonl"},
        training={"max_steps": 60, "epochs": 60, "evaluations": 30, "patience": 4, "learning_rate": 0.03},
    )
    watched = [(one["step"], one["eval_loss"]) for one in metrics(made.run.folder) if "eval_loss" in one]
    best_step, best = min(watched, key=lambda pair: pair[1])
    assert watched[-1][0] < 60, "patience did not end the run"
    assert len([step for step, _ in watched if step > best_step]) == 4
    assert made.manifest.evaluation.adapter_loss == pytest.approx(best, abs=0.02)
    assert watched[-1][1] > best + 0.1
    assert {"eval_mean_token_accuracy"} <= set().union(*(set(one) for one in metrics(made.run.folder)))


@pytest.mark.slow
def test_rows_too_long_are_dropped_or_cut_only_by_name(tiny: TinyHome, tmp_path: Path) -> None:
    rows = conversations("acme")
    rows[3] = {"messages": [user("question"), said("acme " * 40)]}
    rows[5] = {"messages": [user("question " * 40), said("acme")]}
    held = {"held_out": "held.jsonl", "train": "rows.jsonl"}
    short = {"max_length": 64, "max_steps": 2}
    (tmp_path / "long").mkdir()
    (tmp_path / "long" / "held.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(InputError) as caught:
        train_rows(tmp_path, tiny.home, "long", rows, data=held, training=short)
    assert caught.value.code == "rows_too_long"
    assert "line 4 (" in caught.value.message
    assert "line 6 (" in caught.value.message
    for too_long, cut, dropped in (("drop", 0, 2), ("cut", 1, 1)):  # a cut before the answer leaves nothing to learn
        made = train_rows(tmp_path, tiny.home, "long", rows, data={**held, "too_long": too_long}, training=short)
        data = made.manifest.data.train
        assert (data.cut, data.dropped, data.rows) == (cut, dropped, 10 - dropped)
        checks = json.loads((made.run.folder / "checks.json").read_text())
        assert (checks["rows_cut"], checks["rows_dropped"]) == (cut, dropped)
        assert checks["supervised"]["least"] > 0


def test_a_base_whose_served_template_differs_is_refused(tiny: TinyHome, tmp_path: Path) -> None:
    base = load_base(tiny.home, "tiny")
    source = AutoTokenizer.from_pretrained(base_folder(tiny.home, "tiny") / "source")
    served = AutoTokenizer.from_pretrained(base_folder(tiny.home, "tiny") / "nf4-dense")
    row = Conversation.model_validate(conversations("acme")[0])
    assert check_template(base, base_folder(tiny.home, "tiny"), source, [row], None) == 1
    served.chat_template = served.chat_template.replace("<|im_end|>", "<|im_end|> ")
    served.save_pretrained(tmp_path / "nf4-dense")
    with pytest.raises(CheckError) as caught:
        check_template(base, tmp_path, source, [row], None)
    assert caught.value.code == "template_differs"


@pytest.mark.slow
def test_a_recipe_can_be_proven_without_training(tiny: TinyHome, tmp_path: Path) -> None:
    train_rows(tmp_path, tiny.home, "proven", conversations("acme"), training={"max_steps": 1})
    before = set(tiny.home.runs.iterdir())
    done = polytone("train", str(tmp_path / "proven/recipe.yaml"), "--check", "--json", home=tiny.home.root)
    checks = json.loads(done.stdout)
    assert (checks["rows"], checks["held_out_rows"], checks["steps"]) == (8, 2, 1)
    assert checks["rows_rendered_alike"] == 2
    (few,) = checks["warnings"]  # no reference is asked for
    assert few.startswith("2 held-out rows can hardly tell a better voice from a worse one. Hold out 30 or more")
    assert set(tiny.home.runs.iterdir()) == before


def test_too_few_held_out_rows_are_said_before_training() -> None:
    """Ten rows were answered for 25 seconds as a drift reference that serving then ignored; three measured a voice."""
    recipe = Recipe.model_validate({"name": "a", "data": {"train": "x"}})
    row, conversation = Row([1, 2], [-100, 2]), Conversation.model_validate(conversations("acme")[0])
    few, no_reference = warnings_of(recipe, [row] * 10, [conversation] * 10)
    assert few.startswith("10 held-out rows can hardly tell")
    assert no_reference.startswith("10 held-out prompts will not do as a drift reference: serving needs 20")
    assert list(warnings_of(recipe, [row] * 30, [conversation] * 30)) == []
    (fewer,) = warnings_of(recipe.model_copy(update={"drift": DriftSection(rows=19)}), [row] * 30, [conversation] * 30)
    assert fewer.startswith("19 held-out prompts")
    assert list(warnings_of(recipe.model_copy(update={"drift": DriftSection(rows=0)}), [row] * 30, [])) == []


def test_a_run_that_would_not_fit_is_refused_unless_forced(
    tiny: TinyHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polytone.train.runs.preflight.this_machine", lambda: Card("this small machine", 10**8, "cpu"))
    with pytest.raises(CheckError) as caught:
        train_rows(tmp_path, tiny.home, "large", conversations("acme"), training={"max_steps": 1})
    assert caught.value.code == "memory_too_small"
    assert "this small machine has 100.0 MB left" in caught.value.message
    checks = check(read_job(tiny.home, read_recipe(tmp_path / "large" / "recipe.yaml")), force=True)
    assert checks.memory_bytes > checks.memory_available_bytes == 10**8


def test_a_recipe_that_wants_tensorboard_says_so_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recipe = Recipe.model_validate({"name": "a", "data": {"train": "x"}, "training": {"tensorboard": True}})
    with pytest.raises(InputError) as caught:
        check_extras(recipe)
    assert caught.value.code == "tensorboard_missing"


def test_patience_that_cannot_run_out_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\ndata: {train: x}\ntraining: {evaluations: 2, patience: 2}\n")
    with pytest.raises(InputError) as caught:
        read_recipe(path)
    assert "training.patience" in caught.value.message


def test_the_best_adapter_is_not_left_behind_in_the_run(tiny: TinyHome, tmp_path: Path) -> None:
    made = train_rows(tmp_path, tiny.home, "tidy", conversations("acme"), training={"evaluations": 3})
    assert {path.name for path in made.run.folder.iterdir()} == {
        "adapter",
        "checks.json",
        "held_out.jsonl",
        "loss.png",
        "metrics.jsonl",
        "run.json",
    }
    assert torch.is_grad_enabled()
