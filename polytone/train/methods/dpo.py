"""Training on preferences: two replies to the same prompt, one of them preferred (DPO, Rafailov et al. 2023).

TRL's DPOTrainer continues a parent's adapter; a frozen copy of it is the reference that the new one stays close to.
"""

from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from polytone.contract.rows import Conversation, Message, Preference
from polytone.train.dataset.training_rows import RowFile, holds, read_preferences
from polytone.train.recipe import Recipe
from polytone.train.runs.checkpoints import ExactCheckpoints
from polytone.train.tokenization import Fitted, prompt_and_reply, tokenize_reply, within_length

from .common import (
    Prepared,
    RunCallbacks,
    build_trainer,
    describe_data,
    fitted_conversations,
    measured_on_conversations,
    shared_arguments,
)


def prepare_preferences(recipe: Recipe, tokenizer: Any) -> Prepared:
    """Read and tokenize the recipe's preferences; the held-out rows may be conversations too.

    The voice is measured on the held-out replies that were preferred.

    Raises:
        InputError: as `read_preferences`, `within_length`, `split` and `read_export_manifest`.
    """
    file = read_preferences(recipe.data.train)
    train = fitted(file, recipe, tokenizer)
    if recipe.data.held_out is None:
        kept, held = train.split(recipe.data.held_out_share, recipe.training.seed)
        return prepared_from(file, kept, file, held)
    if holds(recipe.data.held_out, Preference):
        held_file = read_preferences(recipe.data.held_out)
        return prepared_from(file, train, held_file, fitted(held_file, recipe, tokenizer))
    held_out = fitted_conversations(recipe.data.held_out, recipe, tokenizer)
    return measured_on_conversations(as_dataset(train), None, (file, train), held_out)


def fitted(file: RowFile[Preference], recipe: Recipe, tokenizer: Any) -> Fitted[Preference]:
    """Two replies a row, the chosen one first."""
    replies = [
        tuple(
            tokenize_reply(with_reply(row, reply), tokenizer, recipe.system_prompt)
            for reply in (row.chosen, row.rejected)
        )
        for row in file.rows
    ]
    return within_length(file, replies, recipe.training.max_length, recipe.data.too_long)


def with_reply(row: Preference, reply: list[Message]) -> Conversation:
    return Conversation(messages=[*row.prompt, *reply])


def prepared_from(
    file: RowFile[Preference], train: Fitted[Preference], held_file: RowFile[Preference], held_out: Fitted[Preference]
) -> Prepared:
    preferred = [with_reply(row, row.chosen) for row in held_out.sources]
    return Prepared(
        train=as_dataset(train),
        watched=as_dataset(held_out),
        learned=train.single,
        held_out=held_out.single,
        references=preferred,
        conversations=preferred,
        data=describe_data(file, train, held_file, held_out),
    )


def as_dataset(rows: Fitted[Preference]) -> Dataset:
    """The columns of TRL's collator: token ids of the prompt and of the two replies up to their end of turn."""
    pairs = [(prompt_and_reply(chosen), prompt_and_reply(rejected)) for (chosen, rejected), _ in rows.rows]
    return Dataset.from_dict(
        {
            "prompt_ids": [chosen[0] for chosen, _ in pairs],
            "chosen_ids": [chosen[1] for chosen, _ in pairs],
            "rejected_ids": [rejected[1] for _, rejected in pairs],
        }
    )


def dpo_trainer(model: Any, tokenizer: Any, prepared: Prepared, recipe: Recipe, run: RunCallbacks) -> Any:
    config = DPOConfig(**shared_arguments(prepared, recipe, run.folder))
    return build_trainer(TokenizedDPOTrainer, model, config, tokenizer, prepared, run)


class TokenizedDPOTrainer(ExactCheckpoints, DPOTrainer):  # type: ignore[misc]
    """Takes rows tokenized as for supervised training: same prompts, same end of turn."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset
