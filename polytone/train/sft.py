"""Supervised fine-tuning on conversations.

TRL's SFTTrainer with PEFT on a bitsandbytes NF4 base (QLoRA, Dettmers et al. 2023), on CPU or GPU.
"""

from typing import Any

from datasets import Dataset
from trl import SFTConfig

from polytone.contract.rows import Conversation, RowFile, read_conversations

from .cpu_loss import trainer_class
from .data import Fitted, Row, split, tokenize
from .recipe import Recipe
from .training import Prepared, Watch, build_trainer, describe_data, shared_arguments


def prepare_conversations(recipe: Recipe, tokenizer: Any) -> Prepared:
    """Read and tokenize the recipe's conversations.

    Raises:
        InputError: as `read_conversations`, `tokenize`, `split` and `read_export_manifest`.
    """
    train_file = held_file = read_conversations(recipe.data.train)
    train = held_out = fitted(train_file, recipe, tokenizer)
    if recipe.data.held_out is None:
        kept, held = split(train.rows, recipe.data.held_out_share, recipe.training.seed)
        train, held_out = Fitted(kept, train.cut, train.dropped), Fitted(held)
    else:
        held_file = read_conversations(recipe.data.held_out)
        held_out = fitted(held_file, recipe, tokenizer)
    return Prepared(
        train=as_dataset(train.single),
        watched=as_dataset(held_out.single),
        learned=train.single,
        held_out=held_out.single,
        conversations=held_out.sources,
        data=describe_data(train_file, train, held_file, held_out),
    )


def fitted(file: RowFile[Conversation], recipe: Recipe, tokenizer: Any) -> Fitted[Conversation]:
    return tokenize(file, tokenizer, recipe.training.max_length, recipe.system_prompt, recipe.data.too_long)


def as_dataset(rows: list[Row]) -> Dataset:
    return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]})


def sft_trainer(model: Any, tokenizer: Any, prepared: Prepared, recipe: Recipe, watch: Watch) -> Any:
    config = SFTConfig(
        **shared_arguments(prepared, recipe, watch.folder),
        # The rows of a micro-batch end to end: no padding, and position ids keep them from seeing each other.
        padding_free=recipe.training.packing,
        train_sampling_strategy="group_by_length",
    )
    return build_trainer(trainer_class(model.config), model, config, tokenizer, prepared, watch)
