"""Supervised fine-tuning on conversations.

TRL's SFTTrainer with PEFT on a bitsandbytes NF4 base (QLoRA, Dettmers et al. 2023), on CPU or GPU.
"""

from typing import Any

from datasets import Dataset
from trl import SFTConfig

from polytone.train.recipe import Recipe
from polytone.train.tokenization import Row

from .common import (
    Prepared,
    RunCallbacks,
    build_trainer,
    fitted_conversations,
    measured_on_conversations,
    shared_arguments,
)
from .cpu_loss import trainer_class


def prepare_conversations(recipe: Recipe, tokenizer: Any) -> Prepared:
    """Read and tokenize the recipe's conversations.

    Raises:
        InputError: as `read_conversations`, `tokenize`, `split` and `read_export_manifest`.
    """
    file, train = fitted_conversations(recipe.data.train, recipe, tokenizer)
    if recipe.data.held_out is None:
        train, held_out = train.split(recipe.data.held_out_share, recipe.training.seed)
        held_file = file
    else:
        held_file, held_out = fitted_conversations(recipe.data.held_out, recipe, tokenizer)
    datasets = as_dataset(train.single), as_dataset(held_out.single)
    return measured_on_conversations(*datasets, (file, train), (held_file, held_out))


def as_dataset(rows: list[Row]) -> Dataset:
    return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]})


def sft_trainer(model: Any, tokenizer: Any, prepared: Prepared, recipe: Recipe, run: RunCallbacks) -> Any:
    config = SFTConfig(
        **shared_arguments(prepared, recipe, run.folder),
        # The rows of a micro-batch end to end without padding; position ids keep them apart.
        padding_free=recipe.training.packing,
        train_sampling_strategy="group_by_length",
    )
    return build_trainer(trainer_class(model.config), model, config, tokenizer, prepared, run)
