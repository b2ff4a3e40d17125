"""The LoRA adapter that is trained: a new one, or one that continues a parent's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

from polytone.contract.adapter import WEIGHTS, check_servable, read_version
from polytone.contract.base import Base
from polytone.contract.errors import CheckError, InputError
from polytone.contract.files import folder_written_whole
from polytone.contract.home import Home
from polytone.contract.manifest import Manifest
from polytone.train.recipe import LoraSection, Recipe


def read_parent(home: Home, recipe: Recipe, base: Base) -> Manifest | None:
    """The version a recipe continues, if it names one.

    Raises:
        InputError: `invalid_version`, or `parent_mismatch` if the recipe asks for another shape of adapter.
        NotFoundError: `version_not_found`.
        CheckError: as `read_version` and `check_servable`: damaged, or trained on another base.
    """
    if recipe.parent is None:
        return None
    parent = read_version(home, recipe.parent)
    check_servable(parent, base, parent.peft.rank)
    if problems := list(differences(recipe, parent)):
        raise InputError(
            f"{recipe.name}: {'; '.join(problems)}. Leave these keys out to take the parent's, or train without one.",
            code="parent_mismatch",
            param="lora",
        )
    return parent


def differences(recipe: Recipe, parent: Manifest) -> Iterator[str]:
    """Keys of the recipe that differ from the parent's; dropout may differ."""
    own = lora_of(parent)
    for key in ("rank", "alpha"):
        requested, existing = getattr(recipe.lora, key), getattr(own, key)
        if key in recipe.lora.model_fields_set and requested != existing:
            yield f"lora.{key}: is {requested:g}, the parent {parent.version} has {existing:g}"
    if "rslora" in recipe.lora.model_fields_set and recipe.lora.rslora != own.rslora:
        yield f"lora.rslora: is {recipe.lora.rslora}, the parent {parent.version} has {own.rslora}"
    targets = recipe.lora.targets
    same = targets == own.targets or (targets != "all-linear" and sorted(targets) == parent.peft.targets)
    if "targets" in recipe.lora.model_fields_set and not same:
        yield f"lora.targets: is {targets}, the parent {parent.version} has {', '.join(parent.peft.targets)}"


def inherit(recipe: Recipe, parent: Manifest | None) -> Recipe:
    """The recipe with the shape of the parent's adapter."""
    if parent is None:
        return recipe
    lora = lora_of(parent).model_copy(update={"dropout": recipe.lora.dropout})
    return recipe.model_copy(update={"lora": lora})


def lora_of(parent: Manifest) -> LoraSection:
    recorded = parent.recipe.get("lora")
    everywhere = isinstance(recorded, dict) and recorded.get("targets") == "all-linear"
    return LoraSection.model_construct(
        rank=parent.peft.rank,
        alpha=parent.peft.alpha,
        rslora=parent.peft.rslora,
        targets="all-linear" if everywhere else parent.peft.targets,
    )


def attach_adapter(model: Any, recipe: Recipe, parent: Path | None) -> Any:
    """Add a new adapter to the base, or the parent's from its folder; nothing else is trainable."""
    model.requires_grad_(False)
    model.config.use_cache = False
    adapted = new_adapter(model, recipe) if parent is None else continued_adapter(model, recipe, parent)
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        raise CheckError("No parameter is trainable: lora.targets match no module.", code="nothing_trainable")
    # The manifest names the base by id and digest; a path of the training machine is of no use elsewhere.
    adapted.peft_config["default"].base_model_name_or_path = recipe.base
    return adapted


def new_adapter(model: Any, recipe: Recipe) -> Any:
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        use_rslora=recipe.lora.rslora,
        target_modules=recipe.lora.targets,
    )
    return get_peft_model(model, config, autocast_adapter_dtype=True)


def continued_adapter(model: Any, recipe: Recipe, parent: Path) -> Any:
    config = LoraConfig.from_pretrained(parent)
    config.lora_dropout = recipe.lora.dropout
    config.inference_mode = False
    return PeftModel.from_pretrained(model, parent, config=config, is_trainable=True, autocast_adapter_dtype=True)


def save_rounded(model: Any, folder: Path) -> None:
    """Round the adapter to bfloat16, in the model and in the file, so that measurements are of what will be served.

    See docs/decisions/0010-adapters-are-published-in-bfloat16.md.
    """
    adapter = {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}
    rounded = {name: tensor.bfloat16() for name, tensor in adapter.items()}
    for name, tensor in adapter.items():
        tensor.copy_(rounded[name])
    with folder_written_whole(folder) as partial:
        # Without the flag PEFT asks the model hub whether the base's vocabulary changed.
        model.save_pretrained(partial, selected_adapters=["default"], save_embedding_layers=False, state_dict=rounded)


def load_rounded(model: Any, folder: Path) -> None:
    """Load the weights that `save_rounded` wrote into a model of the same shape."""
    set_peft_model_state_dict(model, load_file(folder / WEIGHTS), adapter_name="default")


def same_weights(one: Path, other: Path) -> bool:
    """Whether two adapter folders hold the same weights in bfloat16."""
    mine, theirs = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[name].bfloat16(), theirs[name].bfloat16()) for name in mine
    )
