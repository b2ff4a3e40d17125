"""Learning from verdicts on a real NF4 base: what is refused, and that the voice moves the way it was told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer

from polytone.contract.adapter import FILES, WEIGHTS
from polytone.contract.base import base_folder
from polytone.contract.errors import InputError
from polytone.train.artifact.lora import same_weights
from polytone.train.artifact.scoring import loss_per_token
from polytone.train.base_model import load_nf4
from polytone.train.dataset.training_rows import read_verdicts
from polytone.train.methods.kto import as_dataset, balance, fitted, judged
from polytone.train.recipe import PREFERENCE_LEARNING_RATE, Recipe, read_recipe
from polytone.train.tokenization import IGNORED, tokenize_verdicts
from tests.support.recipes import Trained, export_of, said, silent, train_rows, user, verdicts, write_rows
from tests.support.tiny_home import TinyHome

ROWS = verdicts(good="acme", bad="zest")
# The most that a recipe may ask for; a model of 0.4 million random parameters moves slowly.
KTO = {"method": "kto", "learning_rate": 1e-4, "max_steps": 16}


@pytest.fixture(scope="module")
def trained(tiny: TinyHome, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("kto")
    export = export_of(write_rows(root / "taught", ROWS), "kto", [row["completion_id"] for row in ROWS])
    (root / "taught" / "rows.manifest.json").write_text(export.model_dump_json(by_alias=True))
    return train_rows(root, tiny.home, "taught", ROWS, parent=tiny.voices["acme"].version, training=KTO)


def test_verdicts_change_the_weights_and_raise_good_over_bad(tiny: TinyHome, trained: Trained, tmp_path: Path) -> None:
    parent, child = (tiny.home.adapter_folder(v) for v in (tiny.voices["acme"].version, trained.manifest.version))
    assert not same_weights(parent, child)
    source = base_folder(tiny.home, "tiny") / "source"
    tokenizer = AutoTokenizer.from_pretrained(source)
    file = read_verdicts(write_rows(tmp_path, ROWS))
    rows = tokenize_verdicts(file, tokenizer, 256, None).single
    margins = []
    for folder in (parent, child):
        model = PeftModel.from_pretrained(load_nf4(source, torch.float32), folder)
        good, bad = (
            loss_per_token(
                model, [r for r, one in zip(rows, file.rows, strict=True) if one.label is label], silent(), ""
            )
            for label in (True, False)
        )
        margins.append(bad - good)
    assert margins[1] > margins[0] + 0.05


def test_training_starts_at_the_parents_very_numbers(trained: Trained) -> None:
    """The trainer rounds the adapter of a quantized model to bfloat16, but not the copy of it that it compares with;
    the first rewards would then be the rounding."""
    first, *_, last = metrics(trained)
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-5)
    assert first["rewards/rejected"] == pytest.approx(0, abs=1e-5)
    assert first["loss"] == pytest.approx(0.5, abs=1e-5)
    assert last["loss"] < first["loss"]


def test_its_metrics_are_recorded_like_any_runs(trained: Trained) -> None:
    records = metrics(trained)
    assert [record["step"] for record in records] == list(range(1, 17))
    lines = (trained.run.folder / "metrics.jsonl").read_text().splitlines()
    assert any("eval_loss" in json.loads(line) for line in lines)
    assert (trained.run.folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def metrics(trained: Trained) -> list[dict[str, Any]]:
    lines = (trained.run.folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def test_the_version_has_exactly_its_files_and_no_copy_of_its_parent(tiny: TinyHome, trained: Trained) -> None:
    assert {path.name for path in tiny.home.adapter_folder(trained.manifest.version).iterdir()} == FILES
    assert not list(trained.run.folder.rglob("ref"))
    assert [path.name for path in trained.run.folder.rglob("*.safetensors")] == [WEIGHTS]


def test_it_says_where_it_comes_from(tiny: TinyHome, trained: Trained) -> None:
    manifest = trained.manifest
    assert manifest.parent == tiny.voices["acme"].version
    assert manifest.recipe["training"]["method"] == "kto"
    assert manifest.evaluation.parent_loss is not None
    assert manifest.data.train.export is not None
    assert manifest.data.train.export.completions == [row["completion_id"] for row in ROWS]
    # Both labels are held out; the voice is measured on the good reply alone: "acme N" and its end of turn.
    assert (manifest.data.train.rows, manifest.data.held_out.rows) == (10, 2)
    assert manifest.evaluation.tokens in (7, 8)


def test_one_label_alone_is_refused(tiny: TinyHome, tmp_path: Path) -> None:
    for label in (True, False):
        rows = [{**row, "label": label} for row in ROWS]
        with pytest.raises(InputError) as caught:
            train_rows(tmp_path, tiny.home, "one", rows, parent=tiny.voices["acme"].version, training=KTO)
        assert (caught.value.code, caught.value.param) == ("one_class_only", "label")
        assert f"label {str(not label).lower()}" in caught.value.message


def test_held_out_verdicts_need_a_good_one(tiny: TinyHome, tmp_path: Path) -> None:
    write_rows(tmp_path / "measured", [{**row, "label": False} for row in ROWS], "held_out.jsonl")
    data = {"train": "rows.jsonl", "held_out": "held_out.jsonl"}
    with pytest.raises(InputError) as caught:
        train_rows(tmp_path, tiny.home, "measured", ROWS, data=data, parent=tiny.voices["acme"].version, training=KTO)
    assert (caught.value.code, caught.value.param) == ("one_class_only", "data.held_out")


def test_only_the_judged_reply_is_learned_and_replies_move_on_within_a_batch(tiny: TinyHome, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder(tiny.home, "tiny") / "source")
    rows = [
        {"prompt": [user("one"), said("two"), user("three")], "completion": [said(f"four {number}")], "label": True}
        for number in range(5)
    ]
    recipe = Recipe.model_validate(
        {"name": "a", "data": {"train": "x"}, "system_prompt": "Be kind.", "training": {"micro_batch": 2, "batch": 2}}
    )
    verdicts = judged(fitted(read_verdicts(write_rows(tmp_path, rows)), recipe, tokenizer))
    labels = [label for label in verdicts[0].row.labels if label != IGNORED]
    assert tokenizer.decode(labels) == "four 0<|im_end|>"
    columns = as_dataset(verdicts, recipe)
    assert tokenizer.decode(columns["prompt_ids"][0]).startswith("<|im_start|>system\nBe kind.<|im_end|>")
    assert tokenizer.decode(columns["prompt_ids"][0]).endswith("<|im_start|>assistant\n")
    moved = [tokenizer.decode(ids) for ids in columns["KL_completion_ids"]]
    assert [text[5] for text in moved] == ["1", "0", "3", "2", "4"]


@pytest.mark.parametrize(("good", "bad"), [(1, 1), (1, 100), (100, 1), (3, 2), (4, 3), (5, 4), (7, 9)])
def test_good_and_bad_rows_are_balanced(good: int, bad: int) -> None:
    desirable, undesirable = balance(good, bad)
    assert 1 - 1e-9 <= desirable * good / (undesirable * bad) <= 4 / 3 + 1e-9
    assert 1.0 in (desirable, undesirable)


def test_the_learning_rate_is_the_methods_own(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\ndata: {train: x}\nparent: a@000000000000\ntraining: {method: kto}")
    assert read_recipe(path).training.learning_rate == PREFERENCE_LEARNING_RATE
    assert 1e-6 <= PREFERENCE_LEARNING_RATE <= 5e-6
