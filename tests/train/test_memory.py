"""The memory estimate: its counts are the libraries' own, its items sum, more work never takes less, bars hold."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from polytone.contract.base import base_folder
from polytone.contract.errors import InputError, UnavailableError
from polytone.contract.home import Home
from polytone.train.artifact import scoring as evaluate
from polytone.train.artifact.lora import attach_adapter
from polytone.train.base_model import load_nf4
from polytone.train.memory.activations import layer_bytes
from polytone.train.memory.devices import available_ram, parse_size, this_machine
from polytone.train.memory.estimate import Estimate, estimate, largest_batch
from polytone.train.memory.known_models import KNOWN, find_shape, known_name
from polytone.train.memory.plan import EVALUATION_ROWS, METHODS, OPTIMIZERS, default_plan, plan_of
from polytone.train.memory.shape import MODEL_TYPES, Shape, read_shape, shape_of
from polytone.train.recipe import Recipe
from tests.support.processes import polytone
from tests.support.tiny_home import TinyHome

GB = 1_000_000_000
SMALL = {
    "vocab_size": 260,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "pad_token_id": 0,
}
NOWHERE = Home(Path("there-is-no-such-home"))
ROWS, TOKENS, RANK = 3, 40, 4


def small(kind: str, device: str = "cpu", **fields: Any) -> tuple[Any, Shape]:
    """A random model of a type, and the shape read from its configuration."""
    config = AutoConfig.for_model(kind, **{**SMALL, **fields})
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config)
    return model, shape_of(config.to_dict(), kind)


def mistral() -> Shape:
    return find_shape("mistral-7b", NOWHERE)[0]


def item(found: Estimate, name: str) -> int:
    return next(one.bytes for one in found.items if one.name == name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_the_parameter_count_is_that_of_the_real_model(kind: str, tied: bool) -> None:
    model, shape = small(kind, "meta", tie_word_embeddings=tied)
    assert shape.parameters == model.num_parameters()


def test_biases_where_the_configuration_asks_for_them_are_counted() -> None:
    model, shape = small("llama", "meta", attention_bias=True, mlp_bias=True)
    assert shape.parameters == model.num_parameters()


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_shape_has_the_parameters_of_its_model(name: str) -> None:
    shape, _ = find_shape(name, NOWHERE)
    config = AutoConfig.for_model(
        shape.model_type,
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        assert shape.parameters == AutoModelForCausalLM.from_config(config).num_parameters()


@pytest.mark.parametrize("targets", [(), ("q_proj", "v_proj"), ("down_proj",)])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2"])
def test_the_adapter_has_the_trainable_parameters_that_peft_counts(kind: str, targets: tuple[str, ...]) -> None:
    model, shape = small(kind)
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules=list(targets) or "all-linear")
    trainable, _ = get_peft_model(model, config).get_nb_trainable_parameters()
    assert shape.adapter_weights(RANK, targets) == trainable


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("targets", [(), ("q_proj", "v_proj"), ("down_proj",)])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_block_saves_what_autograd_saves(kind: str, targets: tuple[str, ...], padded: bool) -> None:
    """Two more blocks add what two blocks are said to save, to the byte."""
    two, four = (saved_bytes(small(kind, num_hidden_layers=layers)[0], targets, padded) for layers in (2, 4))
    shape = small(kind, "meta")[1]
    rows = ROWS if padded else 1
    plan = default_plan(shape, "lora", "cpu", rows, TOKENS, rank=RANK, targets=targets)
    assert four - two == 2 * layer_bytes(shape, plan)


def saved_bytes(model: Any, targets: tuple[str, ...], padded: bool) -> int:
    """Bytes of all storages that a forward pass keeps for its backward pass, parameters left out."""
    model.requires_grad_(False)
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules=list(targets) or "all-linear")
    adapted = get_peft_model(model, config).train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in adapted.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(3, 200, (ROWS if padded else 1, TOKENS))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, -5:] = 0
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapted(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_the_base_of_qlora_takes_the_bytes_that_bitsandbytes_takes(tiny: TinyHome) -> None:
    source = base_folder(tiny.home, "tiny") / "source"
    model = load_nf4(source, torch.float32)
    shape = read_shape(source, "tiny")
    found = estimate(shape, default_plan(shape, "qlora", "cpu", 1, 64))
    assert item(found, "weights") == model.get_memory_footprint()
    states = [module.weight.quant_state for module in model.modules() if isinstance(module, Linear4bit)]
    scales = sum(state.absmax.nbytes + state.state2.absmax.nbytes + state.offset.nbytes for state in states)
    tables = {state.code.data_ptr(): state.code.nbytes for state in states}
    tables |= {state.state2.code.data_ptr(): state.state2.code.nbytes for state in states}
    assert item(found, "quantization constants") == scales + sum(tables.values())


def test_the_adapter_of_a_recipe_has_the_size_that_polytone_trains(tiny: TinyHome) -> None:
    source = base_folder(tiny.home, "tiny") / "source"
    shape = read_shape(source, "tiny")
    recipe = Recipe.model_validate(
        {"name": "a", "data": {"train": "x"}, "lora": {"rank": 8}, "training": {"micro_batch": 2, "max_length": 48}}
    )
    adapted = attach_adapter(load_nf4(source, torch.float32), recipe, None)
    trainable = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    plan = plan_of(recipe, shape, "cpu")
    assert (plan.batch, plan.length, plan.dtype, plan.checkpointing) == (2, 48, "float32", False)
    assert item(estimate(shape, plan), "adapter") == 16 * trainable
    assert plan_of(recipe, shape, "cpu", longest=20).length == 20
    assert plan_of(recipe, shape, "cpu", longest=99).length == 48


def test_what_the_estimate_takes_from_training_is_still_so_there() -> None:
    assert EVALUATION_ROWS == evaluate.BATCH


@given(
    method=st.sampled_from(METHODS),
    device=st.sampled_from(["cpu", "cuda"]),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    loss=st.sampled_from(["supervised", "chunked", "whole"]),
    checkpointing=st.booleans(),
    batch=st.integers(1, 64),
    length=st.integers(1, 4096),
)
def test_items_sum_to_the_total_and_more_rows_tokens_or_rank_never_take_less(
    method: Any, device: Any, optimizer: str, loss: str, checkpointing: bool, batch: int, length: int
) -> None:
    shape = mistral()
    plan = default_plan(
        shape, method, device, batch, length, optimizer=optimizer, loss=loss, checkpointing=checkpointing
    )
    found = estimate(shape, plan)
    assert sum(one.bytes for one in found.items) == found.total_bytes
    assert all(one.bytes >= 0 and one.assumption for one in found.items)
    assert estimate(shape, replace(plan, batch=batch + 1)).total_bytes >= found.total_bytes
    assert estimate(shape, replace(plan, length=length + 1)).total_bytes >= found.total_bytes
    assert estimate(shape, replace(plan, rank=plan.rank + 1)).total_bytes >= found.total_bytes


@given(method=st.sampled_from(METHODS), length=st.integers(1, 4096), memory=st.integers(1, 400 * GB))
def test_the_largest_batch_fits_and_one_row_more_does_not(method: Any, length: int, memory: int) -> None:
    shape = mistral()
    plan = default_plan(shape, method, "cuda", 1, length)
    batch = largest_batch(shape, plan, memory)
    if batch:
        assert estimate(shape, replace(plan, batch=batch)).total_bytes <= memory
    assert estimate(shape, replace(plan, batch=batch + 1)).total_bytes > memory


@pytest.mark.parametrize(("optimizer", "each"), [("adamw", 12), ("adamw-master", 16), ("sgd", 4)])
def test_full_fine_tuning_of_mistral_takes_its_bytes_a_parameter(optimizer: str, each: int) -> None:
    shape = mistral()
    found = estimate(shape, default_plan(shape, "full", "cuda", 1, 1024, optimizer=optimizer))
    states = sum(item(found, name) for name in ("weights", "gradients", "optimizer"))
    assert states == pytest.approx(each * 7.248e9, rel=1e-3)
    assert (
        f"{each} with weights and gradients" in next(one for one in found.items if one.name == "optimizer").assumption
    )


def test_mistral_needs_87_to_120_gb_in_full_and_under_16_by_qlora() -> None:
    shape = mistral()
    for optimizer in ("adamw", "adamw-master"):
        full = estimate(shape, default_plan(shape, "full", "cuda", 1, 1024, optimizer=optimizer))
        assert 87 * GB <= full.total_bytes <= 120 * GB
    for batch, length in ((1, 1024), (4, 1024), (1, 2048), (4, 2048)):
        assert estimate(shape, default_plan(shape, "qlora", "cuda", batch, length)).total_bytes < 16 * GB


def test_gradient_checkpointing_saves_memory_and_says_how_much() -> None:
    shape = mistral()
    without = estimate(shape, default_plan(shape, "qlora", "cuda", 4, 1024, checkpointing=False))
    with_it = estimate(shape, default_plan(shape, "qlora", "cuda", 4, 1024, checkpointing=True))
    assert item(with_it, "activations") < item(without, "activations") / 5
    words = next(one.assumption for one in with_it.items if one.name == "activations")
    assert f"{item(without, 'activations'):,}" in words


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("mistral-7b", "mistralai/Mistral-7B-v0.3"),
        ("mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-v0.3"),
        ("MISTRALAI/mistral-7b-Instruct-v0.3", "mistralai/Mistral-7B-v0.3"),
        ("Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"),
        ("gemma-2-9b-it", "google/gemma-2-9b"),
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("somebody/else", None),
    ],
)
def test_known_models_are_found_by_any_of_their_names(model: str, name: str | None) -> None:
    assert known_name(model) == name


def test_a_base_a_folder_and_a_file_give_the_same_shape(tiny: TinyHome) -> None:
    source = base_folder(tiny.home, "tiny") / "source"
    base, local = find_shape("tiny", tiny.home)
    assert local
    for place in (source, source / "config.json"):
        assert replace(find_shape(str(place), tiny.home)[0], name="tiny") == base


def test_a_configuration_that_says_too_little_is_refused_with_every_field(tmp_path: Path) -> None:
    for content, code, parts in (
        ('{"model_type": "llama", "vocab_size": 0}', "model_config_invalid", ("vocab_size", "hidden_size")),
        ('{"model_type": "mamba"}', "model_unsupported", ("mamba", "mistral")),
        ("[]", "model_config_invalid", ("config.json",)),
        ("{", "model_config_invalid", ("not JSON",)),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(InputError) as caught:
            read_shape(tmp_path, "odd")
        assert caught.value.code == code
        assert all(part in caught.value.message for part in parts)


def test_without_the_hub_the_known_names_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnavailableError) as caught:
        find_shape("somebody/else", NOWHERE)
    assert caught.value.code == "base_unreachable"
    assert all(name in caught.value.message for name in KNOWN)


def test_sizes_of_cards_are_read() -> None:
    sizes = {"24GB": 24 * GB, "24 gb": 24 * GB, "16": 16 * GB, "80GiB": 80 << 30, "500MB": GB // 2}
    assert {text: parse_size(text) for text in sizes} == sizes
    assert [parse_size(text) for text in ("", "big", "24XB", "-1GB", "0GB")] == [None] * 5
    assert parse_size("1.5TB") == 1500 * GB


def test_a_container_has_no_more_memory_than_its_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=8_192_000))
    groups = tmp_path / "cgroup"
    groups.mkdir()
    for limit, left in (("max", 8_192_000), ("3000000", 2_400_000)):
        for name, text in (("max", limit), ("current", "1000000"), ("stat", "inactive_file 400000\n")):
            (groups / f"memory.{name}").write_text(text)
        assert available_ram(groups) == left
    assert this_machine().bytes > 0


def test_the_command_prints_one_document_whose_items_sum() -> None:
    done = polytone(
        "estimate",
        "mistral-7b",
        "--batch",
        "1,4",
        "--length",
        "512,2048",
        "--card",
        "24GB",
        "--json",
        home=NOWHERE.root,
    )
    report = json.loads(done.stdout)
    assert report["total_bytes"] == sum(one["bytes"] for one in report["items"])
    assert report["items"] == report["methods"]["qlora"]["items"]
    assert report["run_bytes"] >= report["total_bytes"]
    assert [(row["batch"], row["length"]) for row in report["grid"]] == [(1, 512), (4, 512), (1, 2048), (4, 2048)]
    assert report["grid"][0]["total_bytes"]["qlora"] == report["total_bytes"]
    (card,) = report["cards"]
    assert (card["bytes"], card["fits"]) == (24 * GB, {"full": False, "lora": True, "qlora": True})
    assert card["largest_batch"]["qlora"]["512"] > card["largest_batch"]["qlora"]["2048"] > 1


def test_the_command_shows_every_item_and_card_to_people(tiny: TinyHome) -> None:
    done = polytone("estimate", "tiny", "--device", "cpu", "--card", "1GB", home=tiny.home.root)
    assert done.returncode == 0, done.stderr
    for part in ("weights", "activations", "logits", "total", "1GB", "What qlora assumes", "supervised positions"):
        assert part in done.stdout


def test_its_defaults_are_those_of_a_recipe() -> None:
    """It took 4 rows where a recipe takes 8, and gave another total than `polytone train --check`."""
    report = json.loads(polytone("estimate", "mistral-7b", "--device", "cpu", "--json", home=NOWHERE.root).stdout)
    plan = plan_of(Recipe.model_validate({"name": "a", "data": {"train": "x"}}), mistral(), "cpu")
    assert (report["batch"], report["length"]) == (plan.batch, plan.length) == (8, 1024)
    assert report["total_bytes"] == report["run_bytes"] == estimate(mistral(), plan).total_bytes


def test_bad_input_is_refused_with_every_reason() -> None:
    bad = ["--batch", "0,x", "--length", "-1", "--card", "big", "--optimizer", "adam", "--rank", "0"]
    done = polytone("estimate", "nope", *bad, "--json", home=NOWHERE.root)
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "model_not_found"
    for part in ("nope", "mistralai/Mistral-7B-v0.3", "'0'", "'x'", "'-1'", "'big'", "'adam'", "--rank: 0"):
        assert part in error["message"]
    done = polytone("estimate", "mistral-7b", "--targets", "qkv", "--batch", "0", home=NOWHERE.root)
    assert done.returncode == 2
    assert "--targets: 'qkv'" in done.stderr
    assert "--batch: '0'" in done.stderr


def test_an_estimate_by_name_loads_no_heavy_library() -> None:
    import subprocess
    import sys

    program = (
        "import sys; sys.argv = ['polytone', 'estimate', 'mistral-7b', '--json']\n"
        "from polytone.cli.main import app\n"
        "app(standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
