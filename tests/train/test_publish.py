"""What is published can be served: an adapter is checked before its version begins, and its card says what it is."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from polytone.contract.adapter import CARD, CONFIG, WEIGHTS
from polytone.contract.errors import CheckError
from polytone.contract.export import ExportReference
from polytone.contract.manifest import Manifest
from polytone.train.artifact.model_card import flattened, model_card
from polytone.train.publish import publish
from polytone.train.run import Run
from tests.support.recipes import Trained, conversations, train_rows
from tests.support.tiny_home import TinyHome


@pytest.fixture(scope="module")
def trained(tiny: TinyHome, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    prompt = "Be brief.\nBe | kind."
    return train_rows(
        tmp_path_factory.mktemp("publish"), tiny.home, "card", conversations("acme"), system_prompt=prompt
    )


def altered(
    trained: Trained, folder: Path, config: dict[str, Any], tensors: Callable[[dict[str, Any]], dict[str, Any]]
) -> Run:
    """The run with another configuration and other tensors in its adapter."""
    source, target = trained.run.folder / "adapter", folder / "adapter"
    target.mkdir(parents=True)
    content = json.loads((source / CONFIG).read_text())
    (target / CONFIG).write_text(json.dumps({**content, **config}))
    save_file(tensors(load_file(source / WEIGHTS)), target / WEIGHTS)
    recipe = trained.run.recipe.model_copy(update={"name": "refused"})
    return replace(trained.run, folder=folder, recipe=recipe)


def as_they_are(tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors


def elsewhere(tensors: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("q_proj", "q_project"): tensor for key, tensor in tensors.items()}


def too_wide(tensors: dict[str, Any]) -> dict[str, Any]:
    return {key: torch.zeros(16, 64) if key.endswith("q_proj.lora_A.weight") else one for key, one in tensors.items()}


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"use_dora": True}, "peft_unsupported"),
        ({"alora_invocation_tokens": [1, 2]}, "peft_unsupported"),
        ({"bias": "all"}, "peft_unsupported"),
        ({"lora_bias": True}, "peft_unsupported"),
        ({"modules_to_save": ["lm_head"]}, "peft_unsupported"),
        ({"use_qalora": True}, "peft_unsupported"),
        ({"layer_replication": [[0, 1]]}, "peft_unsupported"),
        *[({"init_lora_weights": name}, "peft_unsupported") for name in ("pissa", "olora", "corda", "loftq")],
        ({"r": 513}, "config_invalid"),
        ({"rank_pattern": {"q_proj": 1024}}, "config_invalid"),
    ],
)
def test_what_an_engine_would_refuse_is_not_published(
    tiny: TinyHome, trained: Trained, tmp_path: Path, config: dict[str, Any], code: str
) -> None:
    with pytest.raises(CheckError) as caught:
        publish(tiny.home, altered(trained, tmp_path, config, as_they_are))
    assert code in {reason["code"] for reason in caught.value.reasons}
    assert not (tiny.home.adapters / "refused").exists()


@pytest.mark.parametrize(
    ("tensors", "part"), [(elsewhere, "is not a module of the base"), (too_wide, "where the base has")]
)
def test_tensors_that_match_no_module_of_the_base_are_not_published(
    tiny: TinyHome, trained: Trained, tmp_path: Path, tensors: Any, part: str
) -> None:
    """An engine loads such an adapter without a word and answers as the base."""
    with pytest.raises(CheckError) as caught:
        publish(tiny.home, altered(trained, tmp_path, {}, tensors))
    assert caught.value.code == "tensors_mismatch"
    assert part in caught.value.message
    assert not (tiny.home.adapters / "refused").exists()


def test_every_reason_is_given_at_once(tiny: TinyHome, trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(CheckError) as caught:
        publish(tiny.home, altered(trained, tmp_path, {"use_dora": True, "bias": "all", "lora_alpha": 0}, elsewhere))
    assert [reason["code"] for reason in caught.value.reasons] == [
        "peft_unsupported",
        "config_invalid",
        "tensors_mismatch",
    ]
    assert "bias 'all', use_dora" in caught.value.message


def card_of(tiny: TinyHome, manifest: Manifest) -> tuple[dict[str, Any], str]:
    text = (tiny.home.adapter_folder(manifest.version) / CARD).read_text()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), unpadded(body)


def unpadded(text: str) -> str:
    """Tables without the spaces that align their columns."""
    return re.sub(r" +\|", " |", text)


def test_a_card_has_the_front_matter_that_hubs_read(tiny: TinyHome, trained: Trained) -> None:
    front, _ = card_of(tiny, trained.manifest)
    assert front == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "base_model": "tiny",
        "license": "unknown",
        "tags": ["lora", "qlora", "polytone"],
    }


def test_front_matter_stays_yaml_whatever_the_licence_is_called(tiny: TinyHome, trained: Trained) -> None:
    odd = trained.manifest.model_copy(update={"licence": "other: see 'LICENSE' # 3"})
    front = yaml.safe_load(model_card(odd, tiny.base, 1.0).split("---\n", 2)[1])
    assert front["license"] == "other: see 'LICENSE' # 3"


def test_a_card_says_what_it_was_made_of_and_how_good_it_is(tiny: TinyHome, trained: Trained) -> None:
    manifest = trained.manifest
    _, body = card_of(tiny, manifest)
    headings = [line[3:] for line in body.splitlines() if line.startswith("## ")]
    assert headings == [
        "How to serve it",
        "Data",
        "Evaluation",
        "Intended use",
        "Limits",
        "Recipe",
        "Licence",
    ]
    source, loss = manifest.data.train, manifest.evaluation
    assert f"| training conversations | {source.rows} | {source.assistant_tokens} | rows.jsonl |" in body
    assert source.sha256[:16] in body
    assert f"| this voice | {loss.adapter_loss:.3f} |" in body
    assert f"| base, NF4 | {loss.base_loss:.3f} |" in body
    assert f"polytone adapters promote {manifest.version}" in body
    assert "> Be brief.\n> Be | kind." in body
    assert "Apache-2.0" in body


def test_a_card_lists_every_key_of_the_recipe(tiny: TinyHome, trained: Trained) -> None:
    _, body = card_of(tiny, trained.manifest)
    keys = [key for key, _ in flattened(trained.manifest.recipe)]
    assert len(keys) > 25
    assert all(f"| `{key}` | " in body for key in keys)
    rows = [line for line in body.splitlines() if line.startswith("| `")]
    assert all(row.replace("\\|", "").count("|") == 3 for row in rows)


def test_a_card_names_the_parent_and_where_exported_rows_came_from(tiny: TinyHome, trained: Trained) -> None:
    export = ExportReference(sha256="e" * 64, format="kto", adapter="acme", completions=["chatcmpl-1", "chatcmpl-2"])
    data = trained.manifest.data
    grown = trained.manifest.model_copy(
        update={
            "parent": "card@000000000000",
            "evaluation": trained.manifest.evaluation.model_copy(update={"parent_loss": 1.2345}),
            "data": data.model_copy(update={"train": data.train.model_copy(update={"export": export})}),
            "peft": trained.manifest.peft.model_copy(update={"rank": 64}),
        }
    )
    card = unpadded(model_card(grown, tiny.base, 1.0))
    assert "It continues `card@000000000000`." in card
    assert "| parent `card@000000000000` | 1.234 | 3.437 |" in card or "| 1.235 | 3.437 |" in card
    assert "were exported from feedback on the answers of `acme`" in card
    assert "names the 2 answers" in card
    assert "POLYTONE_MAX_LORA_RANK=64 polytone serve" in card
