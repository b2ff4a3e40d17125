"""Checks of a recipe before a model is loaded: its rows, the memory it needs, and the chat template of the server."""

import importlib.util
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.filesize import decimal
from transformers import AutoTokenizer

from polytone.contract.base import Base
from polytone.contract.digests import digest_text
from polytone.contract.errors import CheckError, InputError
from polytone.contract.reference import LEAST_ROWS
from polytone.contract.rows import Conversation
from polytone.train.memory.devices import this_machine
from polytone.train.memory.estimate import estimate
from polytone.train.memory.plan import plan_of
from polytone.train.memory.shape import read_shape
from polytone.train.recipe import Recipe
from polytone.train.tokenization import Row, with_system

from .distributed import world_size

RENDERED = 32
# Fewer conversations give a loss that says little; docs/evaluation.md has the reason.
LEAST_HELD_OUT = 30


class Quantiles(BaseModel):
    model_config = ConfigDict(frozen=True)

    least: int
    median: int
    most: int


class Checks(BaseModel):
    """The content of checks.json; counts are of tokens unless they name rows."""

    model_config = ConfigDict(frozen=True)

    rows: int
    held_out_rows: int
    rows_cut: int
    rows_dropped: int
    length: Quantiles
    supervised: Quantiles
    supervised_share: float
    rows_rendered_alike: int
    steps: int
    memory_bytes: int
    memory_available_bytes: int
    warnings: list[str] = []


def check_extras(recipe: Recipe) -> None:
    """Refuse a recipe that needs a library which is not installed.

    Raises:
        InputError: `tensorboard_missing`.
    """
    if recipe.training.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "training.tensorboard: TensorBoard is not installed. pip install tensorboard, or leave the key out; "
            "metrics.jsonl and loss.png are written anyway.",
            code="tensorboard_missing",
            param="training.tensorboard",
        )


@dataclass(frozen=True)
class Memory:
    """Bytes that a run is estimated to take at its peak, and bytes available."""

    needed: int
    available: int


def check_memory(recipe: Recipe, folder: Path, rows: list[Row], held_out: list[Row], force: bool) -> Memory:
    """Estimate the run's memory from the configuration of the base in `folder`.

    Raises:
        CheckError: `memory_too_small`, unless `force`.
    """
    longest = max(len(row.input_ids) for row in [*rows, *held_out])
    share = sum(row.supervised for row in rows) / sum(len(row.input_ids) for row in rows)
    shape = read_shape(folder / "source", recipe.base)
    machine = this_machine()
    planned = plan_of(recipe, shape, machine.device, longest, share, len(held_out))
    at_once = world_size() if machine.device == "cpu" else 1  # of several GPUs each process has its own
    memory = Memory(at_once * estimate(shape, planned).total_bytes, machine.bytes)
    if memory.needed > memory.available and not force:
        raise CheckError(
            f"The run is estimated to take {decimal(memory.needed)} at its peak, and {machine.name} has "
            f"{decimal(memory.available)} left. Halve training.micro_batch (the voice stays the same), shorten the "
            f"longest row ({longest} tokens), or train anyway with --force. `polytone estimate {recipe.base}` lists "
            "the items.",
            code="memory_too_small",
            param="training.micro_batch",
        )
    return memory


def quantiles(counts: list[int]) -> Quantiles:
    return Quantiles(least=min(counts), median=round(statistics.median(counts)), most=max(counts))


def describe(
    rows: list[Row],
    held_out: list[Row],
    cut: int,
    dropped: int,
    rendered: int,
    steps: int,
    memory: Memory,
    warnings: list[str],
) -> Checks:
    lengths, supervised = [len(row.input_ids) for row in rows], [row.supervised for row in rows]
    return Checks(
        rows=len(rows),
        held_out_rows=len(held_out),
        rows_cut=cut,
        rows_dropped=dropped,
        length=quantiles(lengths),
        supervised=quantiles(supervised),
        supervised_share=round(sum(supervised) / sum(lengths), 4),
        rows_rendered_alike=rendered,
        steps=steps,
        memory_bytes=memory.needed,
        memory_available_bytes=memory.available,
        warnings=warnings,
    )


def warnings_of(recipe: Recipe, held_out: list[Row], conversations: list[Conversation]) -> Iterator[str]:
    """What does not stop a run and should be known before it is started."""
    if len(held_out) < LEAST_HELD_OUT:
        yield (
            f"{counted(len(held_out), 'held-out row')} can hardly tell a better voice from a worse one. "
            f"Hold out {LEAST_HELD_OUT} or more (data.held_out, data.held_out_share)."
        )
    rows = min(recipe.drift.rows, len(conversations))
    if recipe.drift.rows and rows < LEAST_ROWS:
        yield (
            f"{counted(rows, 'held-out prompt')} will not do as a drift reference: serving needs {LEAST_ROWS}, and "
            "takes the version's first conversations as its baseline instead."
        )


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def check_template(
    base: Base, folder: Path, tokenizer: Any, conversations: list[Conversation], system_prompt: str | None
) -> int:
    """Render some conversations as the server will and compare token by token; the number of conversations.

    Args:
        folder: the prepared base; a CPU serves it from `nf4-dense`, a GPU from `source`.

    Raises:
        CheckError: `template_differs`.
    """
    shown = conversations[:RENDERED]
    served = AutoTokenizer.from_pretrained(folder / "nf4-dense")
    digest = digest_text(str(tokenizer.chat_template))
    differing = [
        one for one in shown if tokens_of(tokenizer, one, system_prompt) != tokens_of(served, one, system_prompt)
    ]
    if differing or digest != base.chat_template_sha256:
        raise CheckError(
            f"{folder}: the tokenizer or chat template in source/ and the one that is served differ"
            + (f" ({len(differing)} of {len(shown)} held-out conversations become other tokens)" if differing else "")
            + ". A voice trained on one would be asked in the other. Prepare the base again.",
            code="template_differs",
            param="base",
        )
    return len(shown)


def tokens_of(tokenizer: Any, conversation: Conversation, system_prompt: str | None) -> list[int]:
    messages = with_system(conversation.as_dicts(), system_prompt)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def summary(checks: Checks) -> str:
    """The checks for people: a sentence, and a line for each warning."""
    lost = "".join(
        f", {count} {what} because of training.max_length"
        for count, what in ((checks.rows_cut, "cut"), (checks.rows_dropped, "dropped"))
        if count
    )
    sentence = (
        f"{counted(checks.rows, 'training row')}, {checks.held_out_rows} held out{lost}; "
        f"{checks.length.least} to {checks.length.most} tokens long (median {checks.length.median}), of which "
        f"{checks.supervised.least} to {checks.supervised.most} are learned ({checks.supervised_share:.0%} of all); "
        f"the server renders them alike; {counted(checks.steps, 'step')}; about {decimal(checks.memory_bytes)} of "
        f"memory, {decimal(checks.memory_available_bytes)} available."
    )
    return "\n".join([sentence, *(f"Warning: {warning}" for warning in checks.warnings)])
