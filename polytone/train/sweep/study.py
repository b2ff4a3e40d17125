"""Sweeps: many recipes tried on the same rows in an Optuna study (Akiba et al. 2019), and the best written out."""

import gc
import itertools
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from pydantic import ValidationError
from transformers import TrainerCallback

from polytone.contract.errors import CheckError, InputError
from polytone.contract.home import Home
from polytone.progress import Progress
from polytone.train.artifact.scoring import batch_count, loss_per_token
from polytone.train.job import read_job
from polytone.train.recipe import Recipe, Span, SweepSection, contradictions
from polytone.train.run import load_model, train_adapter

from .report import write_report
from .space import check_space, draw, with_values

DONE = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
# Trials are evaluated on the way, so that they can be pruned.
EVALUATIONS = 4
# Trials that are never pruned, so that others can be compared with them.
UNPRUNED = 3


@dataclass(frozen=True)
class Sweep:
    """A finished sweep: its folder (report.md, best.yaml, plots), the loss of the recipe and that of the best."""

    folder: Path
    trials: int
    pruned: int
    own_loss: float
    best_loss: float
    best_values: dict[str, Any]


def run_sweep(home: Home, recipe: Recipe, progress: Progress) -> Sweep:
    """Try the recipe, then others by its sweep section; an interrupted sweep is continued.

    Every trial is measured as `polytone train` measures: loss per assistant token on the held-out rows, of the adapter
    that would be published. The first trial is the recipe as it is, so the best is never worse.

    Raises:
        InputError: as `check_space` and `read_job`; `sweep_mismatch` if the folder holds a sweep of another recipe.
    """
    sweep = check_space(recipe)
    recipe = with_evaluations(recipe, sweep)
    read_job(home, recipe)  # everything that is wrong with data or base, before the first trial
    folder = home.sweeps / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    study = open_study(folder, recipe, sweep)
    if not study.trials:
        study.add_trial(try_as_it_is(home, recipe, folder, progress))
        enqueue_grid(study, sweep)
    requeue_interrupted(study)
    write_report(folder, recipe, study)
    remaining = trials_in_all(sweep) - sum(trial.state in DONE for trial in study.trials)
    if remaining > 0:
        study.optimize(
            lambda trial: attempt(home, recipe, sweep, folder, progress, trial),
            n_trials=remaining,
            callbacks=[lambda study, _: write_report(folder, recipe, study)],
        )
    best = study.best_trial
    return Sweep(
        folder=folder,
        trials=len([trial for trial in study.trials if trial.state in DONE]),
        pruned=len([trial for trial in study.trials if trial.state == optuna.trial.TrialState.PRUNED]),
        own_loss=study.trials[0].value,
        best_loss=best.value,
        best_values=best.user_attrs["values"],
    )


def with_evaluations(recipe: Recipe, sweep: SweepSection) -> Recipe:
    """The recipe with enough evaluations to prune trials by; the best recipe that is written out has them too."""
    if not sweep.prune or recipe.training.evaluations > 1:
        return recipe
    training = recipe.training.model_copy(update={"evaluations": EVALUATIONS})
    return recipe.model_copy(update={"training": training})


def trials_in_all(sweep: SweepSection) -> int:
    """The recipe itself and, of a grid, all its points."""
    return 1 + len(grid(sweep)) if sweep.method == "grid" else sweep.trials


def grid(sweep: SweepSection) -> list[dict[str, Any]]:
    lists = [choice for choice in sweep.over.values() if not isinstance(choice, Span)]
    return [dict(zip(sweep.over, point, strict=True)) for point in itertools.product(*lists)]


def open_study(folder: Path, recipe: Recipe, sweep: SweepSection) -> optuna.Study:
    optuna.logging.set_verbosity(logging.WARNING)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "study.log")))
    subject = recipe.record() | {"sweep": sweep.model_dump(mode="json", exclude={"trials"})}
    study = optuna.create_study(storage=storage, study_name=recipe.name, load_if_exists=True)
    if study.user_attrs.get("of", subject) != subject:
        raise InputError(
            f"{folder}: holds a sweep of another recipe of this name. Move that folder away, or restore the recipe; "
            "only sweep.trials may be raised.",
            code="sweep_mismatch",
            param="name",
        )
    study.set_user_attr("of", subject)
    # Restarted with the same seed, a sampler would draw the same values again.
    seed = sweep.seed + len(study.trials)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
    study.sampler = optuna.samplers.RandomSampler(seed=seed) if sweep.method == "random" else sampler
    study.pruner = optuna.pruners.MedianPruner(UNPRUNED, 0) if sweep.prune else optuna.pruners.NopPruner()
    return study


def try_as_it_is(home: Home, recipe: Recipe, folder: Path, progress: Progress) -> optuna.trial.FrozenTrial:
    began = time.monotonic()
    progress.console.print("Trial 0: the recipe as it is")
    curve = Curve()
    loss = measure(home, recipe, folder / "trials" / "0", progress, curve)
    return optuna.trial.create_trial(
        value=loss,
        intermediate_values=curve.losses,
        user_attrs={"values": {}, "seconds": round(time.monotonic() - began, 1)},
    )


def enqueue_grid(study: optuna.Study, sweep: SweepSection) -> None:
    if sweep.method == "grid":
        for point in grid(sweep):
            study.enqueue_trial(point)


def requeue_interrupted(study: optuna.Study) -> None:
    """Queue the trials again that were running when the sweep was interrupted."""
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        # Values set beforehand, such as a point of the grid, may not have been drawn yet.
        study.enqueue_trial({**trial.system_attrs.get("fixed_params", {}), **trial.params})


def attempt(
    home: Home, recipe: Recipe, sweep: SweepSection, folder: Path, progress: Progress, trial: optuna.Trial
) -> float:
    """The held-out loss of one drawn recipe; a recipe that contradicts itself or diverges is pruned with the reason."""
    began = time.monotonic()
    values = draw(trial, sweep)
    trial.set_user_attr("values", values)
    progress.console.print(f"Trial {trial.number}: " + ", ".join(f"{key} {value}" for key, value in values.items()))
    try:
        candidate = with_values(recipe, values)
        if conflicts := list(contradictions(candidate)):
            raise InputError(f"{conflicts[0][0]}: {conflicts[0][1]}", code="recipe_invalid")
        loss = measure(home, candidate, folder / "trials" / str(trial.number), progress, Prune(trial))
    except (CheckError, InputError, ValidationError) as error:
        trial.set_user_attr("reason", str(error))
        raise optuna.TrialPruned from None
    trial.set_user_attr("seconds", round(time.monotonic() - began, 1))
    return loss


def measure(home: Home, recipe: Recipe, folder: Path, progress: Progress, curve: "Curve") -> float:
    """Train in `folder`; returns the held-out loss per assistant token of the adapter that would be published.

    Raises:
        optuna.TrialPruned: the pruner stopped it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job = read_job(home, recipe)
    model = load_model(job)
    train_adapter(job, model, folder, progress, [curve])
    if curve.pruned:
        raise optuna.TrialPruned
    rows = job.prepared.held_out
    progress.start("Measuring on held-out rows", total=batch_count(rows))
    loss = float(loss_per_token(model, rows, progress, "trial"))
    progress.finish()
    shutil.rmtree(folder / "adapter")
    del model
    gc.collect()
    return round(loss, 6)


class Curve(TrainerCallback):  # type: ignore[misc]
    """Collects the held-out losses by step."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.pruned = False

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        self.losses[state.global_step] = float(metrics["eval_loss"])


class Prune(Curve):
    """Reports each held-out loss to the study, and stops the training if its pruner says so."""

    def __init__(self, trial: optuna.Trial) -> None:
        super().__init__()
        self.trial = trial

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        super().on_evaluate(args, state, control, metrics)
        self.trial.report(float(metrics["eval_loss"]), state.global_step)
        if state.global_step < state.max_steps and self.trial.should_prune():
            self.pruned = True
            self.trial.set_user_attr("reason", "held-out loss above the median of the others")
            control.should_training_stop = True
