"""A recipe on a prepared base -> a run folder with an adapter and what was measured of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoTokenizer

from polytone.contract.adapter import Data, Evaluation, Fingerprint
from polytone.contract.base import Base, base_folder, load_base
from polytone.contract.home import Home
from polytone.contract.reference import ReferenceRow

from .base import compute_dtype, load_nf4
from .evaluate import evaluate, evaluate_parent
from .fingerprint import take_fingerprint
from .kto import kto_trainer, prepare_verdicts
from .lora import attach_adapter, inherit, read_parent, save_rounded
from .plot import plot_loss
from .progress import Progress
from .recipe import Recipe
from .reference import take_reference
from .sft import prepare_conversations, sft_trainer
from .training import Prepared, Recorder, planned_steps


@dataclass(frozen=True)
class Run:
    """What a finished training run leaves: its folder (adapter/, metrics.jsonl, loss.png) and what was measured."""

    folder: Path
    recipe: Recipe
    base: Base
    data: Data
    evaluation: Evaluation
    fingerprint: Fingerprint
    reference: list[ReferenceRow]
    seconds: float


@dataclass(frozen=True)
class Method:
    """A way to train: how rows are prepared, who trains on them, and what its loss is called."""

    prepare: Callable[[Recipe, Any], Prepared]
    trainer: Callable[[Any, Any, Prepared, Recipe, Recorder], Any]
    loss: str


METHODS = MappingProxyType(
    {
        "sft": Method(prepare_conversations, sft_trainer, "loss per assistant token (nats)"),
        "kto": Method(prepare_verdicts, kto_trainer, "KTO loss"),
    }
)


def run(home: Home, recipe: Recipe, progress: Progress) -> Run:
    """Train one adapter by the recipe's method and measure it.

    Raises:
        InputError, NotFoundError: anything wrong with recipe, parent or data, before the model is loaded.
        CheckError: `nothing_trainable` or `training_diverged`, or a parent that is damaged or of another base.
    """
    began = time.monotonic()
    base = load_base(home, recipe.base)
    parent = read_parent(home, recipe, base)
    recipe = inherit(recipe, parent)
    source = base_folder(home, base.id) / "source"
    tokenizer = AutoTokenizer.from_pretrained(source)
    method = METHODS[recipe.training.method]
    prepared = method.prepare(recipe, tokenizer)
    folder = new_folder(home.runs, f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}")

    torch.manual_seed(recipe.training.seed)
    model = load_nf4(source, compute_dtype())
    model = attach_adapter(model, recipe, home.adapter_folder(parent.version) if parent else None)
    parent_loss = evaluate_parent(model, prepared.held_out, progress) if parent else None
    train(method, model, tokenizer, prepared, recipe, base, folder, progress)
    evaluation = evaluate(model, prepared.held_out, progress).model_copy(update={"parent_loss": parent_loss})
    fingerprint = take_fingerprint(model, tokenizer, recipe.system_prompt, progress)
    reference = take_reference(model, tokenizer, prepared.conversations, recipe, base.max_length, progress)
    seconds = time.monotonic() - began
    return Run(folder, recipe, base, prepared.data, evaluation, fingerprint, reference, seconds)


def new_folder(runs: Path, name: str) -> Path:
    """A folder of the run's own; two runs may begin in the same second."""
    folder, number = runs / name, 1
    while folder.exists():
        number += 1
        folder = runs / f"{name}-{number}"
    folder.mkdir(parents=True)
    return folder


def train(
    method: Method,
    model: Any,
    tokenizer: Any,
    prepared: Prepared,
    recipe: Recipe,
    base: Base,
    folder: Path,
    progress: Progress,
) -> None:
    """Train the model's adapter and store it with metrics and plot in the run's folder."""
    trainer = method.trainer(model, tokenizer, prepared, recipe, Recorder(folder / "metrics.jsonl", progress))
    progress.start(f"Training {recipe.name}", total=planned_steps(len(prepared.train), recipe))
    trainer.train()
    progress.finish()
    records = [record for record in trainer.state.log_history if "loss" in record or "eval_loss" in record]
    plot_loss(records, f"{recipe.name} on {base.id}", method.loss, folder / "loss.png")
    for other in set(model.peft_config) - {"default"}:  # the copy of the parent that KTO compares with
        model.delete_adapter(other)
    save_rounded(model, folder / "adapter")
