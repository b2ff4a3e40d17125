"""A recipe on a prepared base -> a run folder with an adapter and what was measured of it."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoTokenizer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from polytone.contract.adapter import Data, Evaluation, Fingerprint, Manifest
from polytone.contract.base import Base, base_folder, load_base
from polytone.contract.home import Home
from polytone.contract.reference import ReferenceRow

from .base import compute_dtype, load_nf4
from .best import KeepBest
from .checkpoints import newest_checkpoint, step_of
from .checks import Checks, check_extras, check_memory, check_template, describe, sentence
from .dpo import dpo_trainer, prepare_preferences
from .evaluate import evaluate, evaluate_parent
from .fingerprint import take_fingerprint
from .kto import kto_trainer, prepare_verdicts
from .lora import attach_adapter, inherit, load_rounded, read_parent, save_rounded
from .plot import plot_loss
from .processes import from_main, is_main
from .progress import Progress
from .recipe import Recipe
from .record import begin, record_of, unfinished
from .reference import take_reference
from .sft import prepare_conversations, sft_trainer
from .training import Prepared, Recorder, Watch, planned_steps

CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"


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
    trainer: Callable[[Any, Any, Prepared, Recipe, Watch], Any]
    loss: str


METHODS = MappingProxyType(
    {
        "sft": Method(prepare_conversations, sft_trainer, "loss per assistant token (nats)"),
        "kto": Method(prepare_verdicts, kto_trainer, "KTO loss"),
        "dpo": Method(prepare_preferences, dpo_trainer, "DPO loss"),
    }
)


@dataclass(frozen=True)
class Plan:
    """A recipe with everything it names read and found good; no model is loaded yet."""

    recipe: Recipe
    base: Base
    source: Path
    parent: Manifest | None
    parent_folder: Path | None
    tokenizer: Any
    prepared: Prepared

    @property
    def method(self) -> Method:
        return METHODS[self.recipe.training.method]

    @property
    def steps(self) -> int:
        return planned_steps(len(self.prepared.train), self.recipe)


def plan(home: Home, recipe: Recipe) -> Plan:
    """Read what the recipe names.

    Raises:
        InputError, NotFoundError, CheckError: anything wrong with base, parent or data.
    """
    base = load_base(home, recipe.base)
    parent = read_parent(home, recipe, base)
    recipe = inherit(recipe, parent)
    source = base_folder(home, base.id) / "source"
    tokenizer = AutoTokenizer.from_pretrained(source)
    check_extras(recipe)
    prepared = METHODS[recipe.training.method].prepare(recipe, tokenizer)
    parent_folder = home.adapter_folder(parent.version) if parent else None
    return Plan(recipe, base, source, parent, parent_folder, tokenizer, prepared)


def check(planned: Plan, force: bool = False) -> Checks:
    """What is proven before the compute is spent.

    Args:
        force: only tell where the estimate says that memory will not do.

    Raises:
        CheckError: `template_differs`, `memory_too_small`.
    """
    prepared, prompt = planned.prepared, planned.recipe.system_prompt
    memory = check_memory(planned.recipe, planned.source.parent, prepared.learned, prepared.held_out, force)
    rendered = check_template(planned.base, planned.source.parent, planned.tokenizer, prepared.conversations, prompt)
    train = prepared.data.train
    return describe(prepared.learned, prepared.held_out, train.cut, train.dropped, rendered, planned.steps, memory)


def run(home: Home, recipe: Recipe, progress: Progress, resume: bool = False, force: bool = False) -> Run:
    """Train one adapter by the recipe's method and measure it.

    Args:
        resume: go on with the newest run of this recipe that did not become a version, from its last checkpoint.
        force: train even where the estimate says that memory will not do.

    Raises:
        InputError, NotFoundError: anything wrong with recipe, parent or data, before the model is loaded.
        CheckError: `nothing_trainable` or `training_diverged`, or a parent that is damaged or of another base.
        SystemExit: in all but the main process of several, once training is done.
    """
    began = time.monotonic()
    planned = plan(home, recipe)
    recipe, prepared, tokenizer = planned.recipe, planned.prepared, planned.tokenizer
    checks = check(planned, force)
    record = record_of(recipe, planned.base, prepared.data)
    folder = from_main((unfinished if resume else begin)(home, recipe, record) if is_main() else Path())
    if is_main():
        (folder / "checks.json").write_text(checks.model_dump_json(indent=2) + "\n")
        progress.console.print(sentence(checks))

    model = load_model(planned)
    parent_loss = evaluate_parent(model, prepared.held_out, progress) if planned.parent and is_main() else None
    if (folder / "adapter").is_dir():
        load_rounded(model, folder / "adapter")
    else:
        fit(planned, model, folder, progress)
    if not is_main():
        raise SystemExit(0)  # what follows is the work of one
    evaluation = evaluate(model, prepared.held_out, progress).model_copy(update={"parent_loss": parent_loss})
    fingerprint = take_fingerprint(model, tokenizer, recipe.system_prompt, progress)
    reference = take_reference(model, tokenizer, prepared.conversations, recipe, planned.base.max_length, progress)
    seconds = time.monotonic() - began
    return Run(folder, recipe, planned.base, prepared.data, evaluation, fingerprint, reference, seconds)


def load_model(planned: Plan) -> Any:
    """The NF4 base with the adapter that is to be trained."""
    torch.manual_seed(planned.recipe.training.seed)
    model = load_nf4(planned.source, compute_dtype())
    return attach_adapter(model, planned.recipe, planned.parent_folder)


def fit(planned: Plan, model: Any, folder: Path, progress: Progress, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Train the model's adapter from the folder's last checkpoint on, and store it there with metrics and plot."""
    recipe = planned.recipe
    checkpoint = newest_checkpoint(folder / CHECKPOINTS)
    best = KeepBest(folder / ".best.safetensors", recipe.training.patience)
    told = [Recorder(folder / METRICS, progress), best, *events(recipe, folder), *callbacks]
    watch = Watch(folder, told)
    trainer = planned.method.trainer(model, planned.tokenizer, planned.prepared, recipe, watch)
    progress.start(f"Training {recipe.name}", total=planned.steps)
    if checkpoint is not None and is_main():
        forget_after(folder / METRICS, step_of(checkpoint))
        progress.advance(f"resumed after step {step_of(checkpoint)}", steps=step_of(checkpoint))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    progress.finish()
    if is_main():
        keep(planned, trainer, best, model, folder)


def events(recipe: Recipe, folder: Path) -> list[TrainerCallback]:
    """For TensorBoard, in the run's folder: the trainer's own place is gone when the run ends."""
    if not recipe.training.tensorboard:
        return []
    from torch.utils.tensorboard import SummaryWriter

    return [TensorBoardCallback(SummaryWriter(folder / "tensorboard"))]


def forget_after(metrics: Path, step: int) -> None:
    """Drop the records of steps that will be taken again."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    metrics.write_text("".join(line + "\n" for line in lines if step_in(line) <= step), encoding="utf-8")


def step_in(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):  # the line a kill cut off
        return float("inf")


def keep(planned: Plan, trainer: Any, best: KeepBest, model: Any, folder: Path) -> None:
    """Store the run's adapter, the best there was, with its plot; what is needed to go on is needed no more."""
    kept = best.restore(model, trainer.state)
    records = [record for record in trainer.state.log_history if "loss" in record or "eval_loss" in record]
    title = f"{planned.recipe.name} on {planned.base.id}"
    plot_loss(records, title, planned.method.loss, folder / "loss.png", kept)
    for other in set(model.peft_config) - {"default"}:  # the copy of the parent that preferences are compared with
        model.delete_adapter(other)
    save_rounded(model, folder / "adapter")
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
