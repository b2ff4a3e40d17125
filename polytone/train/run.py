"""A run: a recipe on a prepared base becomes a folder with an adapter and its measurements."""

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
from .runs.checkpoints import CHECKPOINTS, newest_checkpoint, step_of
from .runs.distributed import from_main, is_main
from .runs.early_stopping import KeepBest
from .runs.loss_plot import plot_loss
from .runs.metrics import METRICS, Recorder, drop_records_after, events
from .runs.preflight import summary
from .runs.record import (
    CHECKS,
    Interrupted,
    RunRecord,
    begin,
    newest_open_run,
    record_of,
    resumable,
    state_of,
    write_held_out,
)


@dataclass(frozen=True)
class Run:
    """A finished training run: its folder (adapter/, metrics.jsonl, loss.png) and its measurements."""

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
        resume: continue the newest run of this recipe that did not become a version, from its last checkpoint.
        force: train even where the estimated memory is not available.

    Raises:
        InputError, NotFoundError: anything wrong with recipe, parent or data, before the model is loaded.
        CheckError: `nothing_trainable` or `training_diverged`, or a parent that is damaged or of another base.
        Interrupted: Ctrl-C after the run's folder was begun.
        SystemExit: in all but the main process of several, once training is done.
    """
    began = time.monotonic()
    job = read_job(home, recipe)
    checks = check(job, force)
    record = record_of(job.recipe, job.base, job.prepared.data)
    folder = from_main(run_folder(home, job, record, resume, progress) if is_main() else Path())
    try:
        if is_main():
            (folder / CHECKS).write_text(checks.model_dump_json(indent=2) + "\n")
            write_held_out(folder, job.prepared.references)
            progress.console.print(summary(checks))
        return train_and_measure(job, folder, progress, began)
    except KeyboardInterrupt:
        raise Interrupted(folder) from None


def run_folder(home: Home, job: Job, record: RunRecord, resume: bool, progress: Progress) -> Path:
    """The folder of the run that is continued, or a new one; says which, and what is left unfinished."""
    if resume:
        folder = resumable(home, job.recipe, record)
        state = state_of(folder)
        if (folder / "adapter").is_dir():
            progress.console.print(f"Continuing {folder}: training is done, the measurements remain.")
        elif state.checkpoint is None:
            progress.console.print(f"Continuing {folder}: it has no checkpoint, so it starts from the beginning.")
        else:
            progress.console.print(f"Continuing {folder} from step {state.checkpoint} of {job.steps}.")
        return folder
    unfinished = newest_open_run(home, job.recipe.name)
    if unfinished is not None:
        state = state_of(unfinished)
        progress.console.print(
            f"This is a new run. An earlier one is unfinished at step {state.step} of {state.steps}: {unfinished}. "
            "Continue it with --resume instead, or remove that folder."
        )
    return begin(home, job.recipe, record)


def train_and_measure(job: Job, folder: Path, progress: Progress, began: float) -> Run:
    """Train in `folder`, unless that is done, and measure what came of it."""
    recipe, prepared, tokenizer = job.recipe, job.prepared, job.tokenizer
    model = load_model(job)
    parent_loss = evaluate_parent(model, prepared.held_out, progress) if job.parent and is_main() else None
    if (folder / "adapter").is_dir():
        load_rounded(model, folder / "adapter")
    else:
        train_adapter(job, model, folder, progress)
    if not is_main():
        raise SystemExit(0)  # the rest is done by the main process
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
    """Train the adapter, from the folder's last checkpoint if it has one, and store it with metrics and plot."""
    recipe = job.recipe
    checkpoint = newest_checkpoint(folder / CHECKPOINTS)
    best = KeepBest(folder / ".best.safetensors", recipe.training.patience)
    all_callbacks = [Recorder(folder / METRICS, progress), best, *events(recipe, folder), *callbacks]
    trainer = job.method.trainer(model, job.tokenizer, job.prepared, recipe, RunCallbacks(folder, all_callbacks))
    progress.start(f"Training {recipe.name}", total=job.steps)
    if checkpoint is not None and is_main():
        drop_records_after(folder / METRICS, step_of(checkpoint))
        progress.advance(f"resumed after step {step_of(checkpoint)}", steps=step_of(checkpoint))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    progress.finish()
    if is_main():
        store(job, trainer, best, model, folder)


def store(job: Job, trainer: Any, best: KeepBest, model: Any, folder: Path) -> None:
    """Store the run's best adapter and its plot, and remove the checkpoints."""
    best_step = best.restore(model, trainer.state)
    records = [record for record in trainer.state.log_history if "loss" in record or "eval_loss" in record]
    title = f"{job.recipe.name} on {job.base.id}"
    plot_loss(records, title, job.method.loss, folder / "loss.png", best_step)
    for other in set(model.peft_config) - {"default"}:  # the copy of the parent that preferences are compared with
        model.delete_adapter(other)
    save_rounded(model, folder / "adapter")
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
