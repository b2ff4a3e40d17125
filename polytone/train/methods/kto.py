"""Training on verdicts: replies that were judged good or bad, without pairs (KTO, Ethayarajh et al. 2024).

TRL's KTOTrainer continues a parent's adapter; a frozen copy of it is the reference that the new one stays close to.
"""

import random
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from polytone.contract.errors import InputError
from polytone.contract.rows import Verdict
from polytone.train.dataset.training_rows import RowFile, holds, read_verdicts
from polytone.train.recipe import Recipe
from polytone.train.runs.checkpoints import ExactCheckpoints
from polytone.train.tokenization import Fitted, Row, prompt_and_reply, split, tokenize_verdicts

from .common import (
    Prepared,
    RunCallbacks,
    build_trainer,
    describe_data,
    fitted_conversations,
    measured_on_conversations,
    shared_arguments,
)

# Equation 8 of the paper: the weighted good rows to the weighted bad ones lie between 1 and 4/3.
LEAST_BALANCE, LARGEST_BALANCE = 1.0, 4 / 3


@dataclass(frozen=True)
class Judged:
    """A tokenized verdict; the labels are those of the judged reply."""

    row: Row
    verdict: Verdict


def prepare_verdicts(recipe: Recipe, tokenizer: Any) -> Prepared:
    """Read and tokenize the recipe's verdicts; the held-out rows may be conversations too.

    The voice is measured on the held-out replies that were judged good.

    Raises:
        InputError: `one_class_only` without both good and bad training rows, or without a good one held out; else as
            `read_verdicts`, `tokenize`, `split` and `read_export_manifest`.
    """
    file = read_verdicts(recipe.data.train)
    train = fitted(file, recipe, tokenizer)
    refuse_one_class(file, train.sources)
    if recipe.data.held_out is None:
        kept, held = split_by_class(train, recipe)
        return prepared_from(recipe, file, kept, file, held)
    if holds(recipe.data.held_out, Verdict):
        held_file = read_verdicts(recipe.data.held_out)
        return prepared_from(recipe, file, train, held_file, fitted(held_file, recipe, tokenizer))
    dataset = as_dataset(shuffled(judged(train), recipe), recipe)
    held_out = fitted_conversations(recipe.data.held_out, recipe, tokenizer)
    return measured_on_conversations(dataset, None, (file, train), held_out)


def fitted(file: RowFile[Verdict], recipe: Recipe, tokenizer: Any) -> Fitted[Verdict]:
    return tokenize_verdicts(file, tokenizer, recipe.training.max_length, recipe.system_prompt, recipe.data.too_long)


def judged(rows: Fitted[Verdict]) -> list[Judged]:
    return [Judged(row, verdict) for row, verdict in zip(rows.single, rows.sources, strict=True)]


def refuse_one_class(file: RowFile[Verdict], rows: list[Verdict]) -> None:
    good = sum(row.label for row in rows)
    if 0 < good < len(rows):
        return
    present, missing = ("true", "false") if good else ("false", "true")
    raise InputError(
        f"{file.path}: label: is {present} in all {len(rows)} rows. kto learns from the difference; add rows with "
        f"label {missing}, or train on conversations with training.method sft.",
        code="one_class_only",
        param="label",
    )


def split_by_class(train: Fitted[Verdict], recipe: Recipe) -> tuple[Fitted[Verdict], Fitted[Verdict]]:
    """Hold out the share of the good and of the bad rows, so that both sides have both."""
    kept, held = [], []
    for good in (True, False):
        of_class = [row for row in train.rows if row[1].label is good]
        parts = split(of_class, recipe.data.held_out_share, recipe.training.seed)
        kept += parts[0]
        held += parts[1]
    return Fitted(kept, train.cut, train.dropped), Fitted(held)


def prepared_from(
    recipe: Recipe,
    file: RowFile[Verdict],
    train: Fitted[Verdict],
    held_file: RowFile[Verdict],
    held_out: Fitted[Verdict],
) -> Prepared:
    good = [one for one in judged(held_out) if one.verdict.label]
    if not good:
        raise InputError(
            f"{held_file.path}: label: no held-out row has label true, so there is nothing to measure the voice on. "
            "Add some, or name a file of conversations as data.held_out.",
            code="one_class_only",
            param="data.held_out",
        )
    return Prepared(
        train=as_dataset(shuffled(judged(train), recipe), recipe),
        watched=as_dataset(judged(held_out), recipe),
        learned=train.single,
        held_out=[one.row for one in good],
        references=[one.verdict.conversation() for one in good],
        conversations=[verdict.conversation() for verdict in held_out.sources],
        data=describe_data(file, train, held_file, held_out),
    )


def shuffled(rows: list[Judged], recipe: Recipe) -> list[Judged]:
    """The rows in a random order; the trainer keeps it, because each batch estimates how far the voice has moved."""
    order = list(rows)
    random.Random(recipe.training.seed).shuffle(order)  # noqa: S311 - a reproducible order, not a secret
    return order


def as_dataset(rows: list[Judged], recipe: Recipe) -> Dataset:
    """The columns of TRL's collator. `KL_completion_ids` are the replies of each batch, shifted by one row."""
    size = recipe.training.micro_batch
    pairs = [prompt_and_reply(one.row) for one in rows]
    replies = [reply for _, reply in pairs]
    batches = [replies[start : start + size] for start in range(0, len(replies), size)]
    return Dataset.from_dict(
        {
            "prompt_ids": [prompt for prompt, _ in pairs],
            "completion_ids": replies,
            "KL_completion_ids": [reply for batch in batches for reply in (batch[-1:] + batch[:-1])],
            "label": [one.verdict.label for one in rows],
        }
    )


def kto_trainer(model: Any, tokenizer: Any, prepared: Prepared, recipe: Recipe, run: RunCallbacks) -> Any:
    labels = list(prepared.train["label"])
    desirable, undesirable = balance(sum(labels), len(labels) - sum(labels))
    config = KTOConfig(
        **shared_arguments(prepared, recipe, run.folder),
        desirable_weight=desirable,
        undesirable_weight=undesirable,
        train_sampling_strategy="sequential",
    )
    return build_trainer(TokenizedKTOTrainer, model, config, tokenizer, prepared, run)


def balance(good: int, bad: int) -> tuple[float, float]:
    """Weights of good and bad rows that bring `good` to `bad` between 1:1 and 4:3; the rarer class gets the larger."""
    ratio = good / bad
    if ratio < LEAST_BALANCE:
        return bad / good, 1.0
    return 1.0, max(1.0, ratio / LARGEST_BALANCE)


class TokenizedKTOTrainer(ExactCheckpoints, KTOTrainer):  # type: ignore[misc]
    """Takes rows tokenized as for supervised training: same prompts, same end of turn."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset
