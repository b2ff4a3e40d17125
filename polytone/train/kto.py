"""Learning from verdicts: replies that someone found good or bad, without pairs (KTO, Ethayarajh et al. 2024).

TRL's KTOTrainer continues a parent's adapter; a frozen copy of it is the model that the new one must stay close to.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from polytone.contract.errors import InputError
from polytone.contract.rows import Conversation, RowFile, Verdict, read_conversations, read_verdicts

from .data import IGNORED, Row, split, tokenize, tokenize_verdicts
from .recipe import Recipe
from .training import Prepared, Recorder, build_trainer, describe_data, shared_arguments

# Equation 8 of the paper: the weighted good rows to the weighted bad ones lie between 1 and 4/3.
LEAST_BALANCE, LARGEST_BALANCE = 1.0, 4 / 3


@dataclass(frozen=True)
class Judged:
    """A tokenized verdict: labels on the judged reply, and whether it was found good."""

    row: Row
    good: bool
    conversation: Conversation


def prepare_verdicts(recipe: Recipe, tokenizer: Any) -> Prepared:
    """Read and tokenize the recipe's verdicts; the held-out rows may be conversations too.

    The voice is measured on the held-out replies that were found good.

    Raises:
        InputError: `one_class_only` without good and bad rows to learn from, or without a good one held out; else as
            `read_verdicts`, `tokenize`, `split` and `read_export_manifest`.
    """
    file = read_verdicts(recipe.data.train)
    train = judged_rows(file, recipe, tokenizer)
    refuse_one_class(file)
    if recipe.data.held_out is None:
        train, held_out = split_by_class(train, recipe)
        return prepared_from(recipe, file, train, file, held_out)
    if is_verdicts(recipe.data.held_out):
        held_file = read_verdicts(recipe.data.held_out)
        return prepared_from(recipe, file, train, held_file, judged_rows(held_file, recipe, tokenizer))
    conversations = read_conversations(recipe.data.held_out)
    rows = tokenize(conversations, tokenizer, recipe.training.max_length, recipe.system_prompt)
    return Prepared(
        train=as_dataset(shuffled(train, recipe), recipe),
        watched=None,
        held_out=rows,
        conversations=conversations.rows,
        data=describe_data(file, [one.row for one in train], conversations, rows),
    )


def judged_rows(file: RowFile[Verdict], recipe: Recipe, tokenizer: Any) -> list[Judged]:
    rows = tokenize_verdicts(file, tokenizer, recipe.training.max_length, recipe.system_prompt)
    return [Judged(row, one.label, one.conversation()) for row, one in zip(rows, file.rows, strict=True)]


def refuse_one_class(file: RowFile[Verdict]) -> None:
    good = sum(row.label for row in file.rows)
    if 0 < good < len(file.rows):
        return
    there, lacking = ("true", "false") if good else ("false", "true")
    raise InputError(
        f"{file.path}: label: is {there} in all {len(file.rows)} rows. kto learns from the difference; add rows with "
        f"label {lacking}, or train on conversations with training.method sft.",
        code="one_class_only",
        param="label",
    )


def split_by_class(rows: list[Judged], recipe: Recipe) -> tuple[list[Judged], list[Judged]]:
    """Hold out the share of the good and of the bad rows, so that both sides have both."""
    train: list[Judged] = []
    held_out: list[Judged] = []
    for good in (True, False):
        mine = [row for row in rows if row.good is good]
        kept, held = split(mine, recipe.data.held_out_share, recipe.training.seed)
        train += kept
        held_out += held
    return train, held_out


def is_verdicts(path: Path) -> bool:
    """Whether a file's first row is a verdict; what is wrong with a file is left for its reader to name."""
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(next((line for line in file if line.strip()), ""))
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and "completion" in first


def prepared_from(
    recipe: Recipe, file: RowFile[Verdict], train: list[Judged], held_file: RowFile[Verdict], held_out: list[Judged]
) -> Prepared:
    good = [one.row for one in held_out if one.good]
    if not good:
        raise InputError(
            f"{held_file.path}: label: no held-out row has label true, so there is nothing to measure the voice on. "
            "Add some, or name a file of conversations as data.held_out.",
            code="one_class_only",
            param="data.held_out",
        )
    return Prepared(
        train=as_dataset(shuffled(train, recipe), recipe),
        watched=as_dataset(held_out, recipe),
        held_out=good,
        conversations=[one.conversation for one in held_out],
        data=describe_data(file, [one.row for one in train], held_file, [one.row for one in held_out]),
    )


def shuffled(rows: list[Judged], recipe: Recipe) -> list[Judged]:
    """The trainer takes rows in their order, since each batch estimates how far the voice has moved in all."""
    order = list(rows)
    random.Random(recipe.training.seed).shuffle(order)  # noqa: S311 - a reproducible order, no secret
    return order


def as_dataset(rows: list[Judged], recipe: Recipe) -> Dataset:
    """The columns of TRL's collator. `KL_completion_ids` are the replies of each batch, moved on by one row."""
    size = recipe.training.micro_batch
    pairs = [prompt_and_reply(one.row) for one in rows]
    replies = [reply for _, reply in pairs]
    batches = [replies[start : start + size] for start in range(0, len(replies), size)]
    return Dataset.from_dict(
        {
            "prompt_ids": [prompt for prompt, _ in pairs],
            "completion_ids": replies,
            "KL_completion_ids": [reply for batch in batches for reply in (batch[-1:] + batch[:-1])],
            "label": [one.good for one in rows],
        }
    )


def prompt_and_reply(row: Row) -> tuple[list[int], list[int]]:
    """The ids before the judged reply, and the reply up to and including its end-of-turn token."""
    supervised = [index for index, label in enumerate(row.labels) if label != IGNORED]
    first, last = supervised[0], supervised[-1] + 1
    return row.input_ids[:first], row.input_ids[first:last]


def kto_trainer(model: Any, tokenizer: Any, prepared: Prepared, recipe: Recipe, recorder: Recorder) -> Any:
    labels = list(prepared.train["label"])
    desirable, undesirable = balance(sum(labels), len(labels) - sum(labels))
    config = KTOConfig(
        **shared_arguments(prepared, recipe, recorder.path.parent),
        desirable_weight=desirable,
        undesirable_weight=undesirable,
        train_sampling_strategy="sequential",
    )
    return build_trainer(TokenizedKTOTrainer, model, config, tokenizer, prepared, recorder)


def balance(good: int, bad: int) -> tuple[float, float]:
    """Weights of good and bad rows that bring `good` to `bad` between 1:1 and 4:3; the rarer class is raised."""
    ratio = good / bad
    if ratio < LEAST_BALANCE:
        return bad / good, 1.0
    return 1.0, max(1.0, ratio / LARGEST_BALANCE)


class TokenizedKTOTrainer(KTOTrainer):  # type: ignore[misc]
    """Takes rows as they were tokenized and proven for supervised training: same prompts, same end of turn."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset
