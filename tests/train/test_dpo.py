"""Learning from preferences on a real NF4 base: what changes, what is refused, and what a run leaves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer

from polytone.contract.adapter import FILES
from polytone.contract.base import base_folder
from polytone.contract.errors import InputError
from polytone.train.artifact.lora import same_weights
from polytone.train.artifact.scoring import loss_per_token
from polytone.train.base_model import load_nf4
from polytone.train.dataset.training_rows import read_preferences
from polytone.train.methods.dpo import as_dataset, fitted
from polytone.train.recipe import PREFERENCE_LEARNING_RATE, Recipe, read_recipe
from tests.support.recipes import Trained, preferences, silent, train_rows, write_rows
from tests.support.tiny_home import TinyHome

DPO = {"method": "dpo", "learning_rate": 1e-4, "max_steps": 12, "batch": 4, "micro_batch": 4}
ROWS = preferences("acme", "zest zest")


@pytest.fixture(scope="module")
def trained(tiny: TinyHome, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("dpo")
    return train_rows(root, tiny.home, "preferred", ROWS, parent=tiny.voices["acme"].version, training=DPO)


def test_preferences_widen_the_gap_between_the_two_replies(tiny: TinyHome, trained: Trained, tmp_path: Path) -> None:
    parent, child = (tiny.home.adapter_folder(v) for v in (tiny.voices["acme"].version, trained.manifest.version))
    assert not same_weights(parent, child)
    source = base_folder(tiny.home, "tiny") / "source"
    rows = fitted(read_preferences(write_rows(tmp_path, ROWS)), recipe(), AutoTokenizer.from_pretrained(source)).rows
    margins = []
    for folder in (parent, child):
        model = PeftModel.from_pretrained(load_nf4(source, torch.float32), folder)
        losses = [loss_per_token(model, [pair[side] for pair, _ in rows], silent(), "") for side in (0, 1)]
        margins.append(losses[1] - losses[0])
    assert margins[1] > margins[0] + 0.005


def test_the_version_has_exactly_its_files_and_names_its_parent(tiny: TinyHome, trained: Trained) -> None:
    folder = tiny.home.adapter_folder(trained.manifest.version)
    assert {path.name for path in folder.iterdir()} == FILES
    assert trained.manifest.parent == tiny.voices["acme"].version
    assert trained.manifest.evaluation.parent_loss is not None
    assert {path.name for path in (trained.run.folder / "adapter").iterdir() if path.is_dir()} == set()


def recipe(**training: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "a", "data": {"train": "x"}, "parent": "a@000000000000", "training": {"method": "dpo", **training}}
    )


def test_both_replies_follow_the_same_prompt_to_their_end_of_turn(tiny: TinyHome, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder(tiny.home, "tiny") / "source")
    columns = as_dataset(fitted(read_preferences(write_rows(tmp_path, ROWS)), recipe(), tokenizer))
    assert tokenizer.decode(columns["prompt_ids"][3]).endswith("question 3<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(columns["chosen_ids"][3]) == "acme 3!<|im_end|>"
    assert tokenizer.decode(columns["rejected_ids"][3]) == "zest zest 3<|im_end|>"


def test_a_parent_is_needed_and_the_rate_is_the_methods_own(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\ndata: {train: x}\nparent: a@000000000000\ntraining: {method: dpo}\n")
    assert read_recipe(path).training.learning_rate == PREFERENCE_LEARNING_RATE
    path.write_text("name: a\ndata: {train: x}\ntraining: {method: dpo, learning_rate: 0.01, packing: true}\n")
    with pytest.raises(InputError) as caught:
        read_recipe(path)
    for field in ("parent:", "training.learning_rate:", "training.packing:"):
        assert field in caught.value.message
