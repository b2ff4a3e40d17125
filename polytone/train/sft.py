"""Supervised fine-tuning on conversations.

TRL's SFTTrainer with PEFT on a bitsandbytes NF4 base (QLoRA, Dettmers et al. 2023), on CPU or GPU.
"""

from typing import Any

from datasets import Dataset
from trl import SFTConfig

from polytone.contract.rows import read_conversations

from .cpu_loss import trainer_class
from .data import Row, split, tokenize
from .recipe import Recipe
from .training import Prepared, Recorder, build_trainer, describe_data, shared_arguments


def prepare_conversations(recipe: Recipe, tokenizer: Any) -> Prepared:
    """Read and tokenize the recipe's conversations.

    Raises:
        InputError: as `read_conversations`, `tokenize`, `split` and `read_export_manifest`.
    """
    length, prompt = recipe.training.max_length, recipe.system_prompt
    train_file = held_file = read_conversations(recipe.data.train)
    train = list(zip(tokenize(train_file, tokenizer, length, prompt), train_file.rows, strict=True))
    if recipe.data.held_out is None:
        train, held_out = split(train, recipe.data.held_out_share, recipe.training.seed)
    else:
        held_file = read_conversations(recipe.data.held_out)
        held_out = list(zip(tokenize(held_file, tokenizer, length, prompt), held_file.rows, strict=True))
    train_rows, held_rows = [row for row, _ in train], [row for row, _ in held_out]
    return Prepared(
        train=as_dataset(train_rows),
        watched=as_dataset(held_rows),
        held_out=held_rows,
        conversations=[conversation for _, conversation in held_out],
        data=describe_data(train_file, train_rows, held_file, held_rows),
    )


def as_dataset(rows: list[Row]) -> Dataset:
    return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]})


def sft_trainer(model: Any, tokenizer: Any, prepared: Prepared, recipe: Recipe, recorder: Recorder) -> Any:
    config = SFTConfig(
        **shared_arguments(prepared, recipe, recorder.path.parent),
        packing=False,
        train_sampling_strategy="group_by_length",
    )
    return build_trainer(trainer_class(model.config), model, config, tokenizer, prepared, recorder)
