"""A recipe on a prepared base -> a run folder with an adapter and what was measured of it."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from polytone.contract.base import Base
from polytone.contract.home import Home
from polytone.contract.manifest import Data, Evaluation, Fingerprint
from polytone.contract.reference import ReferenceRow
from polytone.progress import Progress

from .artifact.drift_reference import take_reference
from .artifact.fingerprint import take_fingerprint
from .artifact.lora import attach_adapter, load_rounded, save_rounded
from .artifact.scoring import evaluate, evaluate_parent
from .base_model import compute_dtype, load_nf4
from .job import Job, check, read_job
from .methods.common import RunCallbacks
from .recipe import Recipe
from .runs.checkpoints import newest_checkpoint, step_of
from .runs.distributed import from_main, is_main
from .runs.early_stopping import KeepBest
from .runs.loss_plot import plot_loss
from .runs.metrics import METRICS, Recorder, events, forget_after
from .runs.preflight import sentence
from .runs.record import begin, record_of, unfinished

CHECKPOINTS = "checkpoints"


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
    job = read_job(home, recipe)
    recipe, prepared, tokenizer = job.recipe, job.prepared, job.tokenizer
    checks = check(job, force)
    record = record_of(recipe, job.base, prepared.data)
    folder = from_main((unfinished if resume else begin)(home, recipe, record) if is_main() else Path())
    if is_main():
        (folder / "checks.json").write_text(checks.model_dump_json(indent=2) + "\n")
        progress.console.print(sentence(checks))

    model = load_model(job)
    parent_loss = evaluate_parent(model, prepared.held_out, progress) if job.parent and is_main() else None
    if (folder / "adapter").is_dir():
        load_rounded(model, folder / "adapter")
    else:
        train_adapter(job, model, folder, progress)
    if not is_main():
        raise SystemExit(0)  # what follows is the work of one
    evaluation = evaluate(model, prepared.held_out, progress).model_copy(update={"parent_loss": parent_loss})
    fingerprint = take_fingerprint(model, tokenizer, recipe.system_prompt, progress)
    reference = take_reference(model, tokenizer, prepared.conversations, recipe, job.base.max_length, progress)
    seconds = time.monotonic() - began
    return Run(folder, recipe, job.base, prepared.data, evaluation, fingerprint, reference, seconds)


def load_model(job: Job) -> Any:
    """The NF4 base with the adapter that is to be trained."""
    torch.manual_seed(job.recipe.training.seed)
    model = load_nf4(job.source, compute_dtype())
    return attach_adapter(model, job.recipe, job.parent_folder)


def train_adapter(
    job: Job, model: Any, folder: Path, progress: Progress, callbacks: Sequence[TrainerCallback] = ()
) -> None:
    """Train the model's adapter from the folder's last checkpoint on, and store it there with metrics and plot."""
    recipe = job.recipe
    checkpoint = newest_checkpoint(folder / CHECKPOINTS)
    best = KeepBest(folder / ".best.safetensors", recipe.training.patience)
    told = [Recorder(folder / METRICS, progress), best, *events(recipe, folder), *callbacks]
    watch = RunCallbacks(folder, told)
    trainer = job.method.trainer(model, job.tokenizer, job.prepared, recipe, watch)
    progress.start(f"Training {recipe.name}", total=job.steps)
    if checkpoint is not None and is_main():
        forget_after(folder / METRICS, step_of(checkpoint))
        progress.advance(f"resumed after step {step_of(checkpoint)}", steps=step_of(checkpoint))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    progress.finish()
    if is_main():
        keep(job, trainer, best, model, folder)


def keep(job: Job, trainer: Any, best: KeepBest, model: Any, folder: Path) -> None:
    """Store the run's adapter, the best there was, with its plot; what is needed to go on is needed no more."""
    kept = best.restore(model, trainer.state)
    records = [record for record in trainer.state.log_history if "loss" in record or "eval_loss" in record]
    title = f"{job.recipe.name} on {job.base.id}"
    plot_loss(records, title, job.method.loss, folder / "loss.png", kept)
    for other in set(model.peft_config) - {"default"}:  # the copy of the parent that preferences are compared with
        model.delete_adapter(other)
    save_rounded(model, folder / "adapter")
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
