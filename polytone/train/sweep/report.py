"""The results of a sweep: a table, plots, and the best recipe as a file to train with."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from polytone.contract.files import write_whole
from polytone.train.documents import one_line, render, save_png, table
from polytone.train.recipe import Recipe

from .space import value_of, with_values

TEMPLATE = Path(__file__).with_name("report.md.jinja")
LEAST_COMPARED = 4
COMPLETE, PRUNED = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED


def write_report(folder: Path, recipe: Recipe, study: optuna.Study) -> None:
    """Write report.md, history.png, parameters.png and best.yaml; called again after each trial."""
    trials = [trial for trial in study.trials if trial.state in (COMPLETE, PRUNED)]
    keys = list(recipe.sweep.over) if recipe.sweep else []
    plot_history(trials, folder / "history.png")
    plot_parameters(recipe, trials, keys, folder / "parameters.png")
    write_whole(folder / "best.yaml", best_recipe(folder, recipe, study, len(trials)))
    write_whole(folder / "report.md", report(recipe, study, trials, keys))


def best_recipe(folder: Path, recipe: Recipe, study: optuna.Study, trials: int) -> str:
    """YAML of the recipe with the best trial's values; data paths are relative to `folder`."""
    best = with_values(recipe, study.best_trial.user_attrs["values"])
    content = best.model_dump(mode="json", exclude_unset=True)
    for key in ("train", "held_out"):
        if content["data"].get(key):
            content["data"][key] = os.path.relpath(content["data"][key], folder)
    head = f"# The best of {trials} trials: held-out loss {study.best_value:.6f} nats per assistant token.\n"
    return head + yaml.safe_dump(content, sort_keys=False)


def report(recipe: Recipe, study: optuna.Study, trials: Sequence[Any], keys: list[str]) -> str:
    own, best = study.trials[0], study.best_trial
    headers = ["trial", *(f"`{key}`" for key in keys), "held-out loss", "seconds", ""]
    shares = importance(study, keys)
    return render(
        TEMPLATE,
        name=recipe.name,
        trials=len(trials),
        own=own,
        best=best,
        gain=f"{1 - best.value / own.value:.1%}",
        table=table(headers, (row(recipe, trial, keys, trial.number == best.number) for trial in by_loss(trials))),
        importance=[f"`{key}` {share:.0%}" for key, share in shares.items()],
        compared=len(complete_trials(study)),
    )


def by_loss(trials: Sequence[Any]) -> list[Any]:
    """The best first, pruned ones last."""
    return sorted(trials, key=lambda trial: (trial.state != COMPLETE, trial.value or 0.0, trial.number))


def row(recipe: Recipe, trial: Any, keys: list[str], best: bool) -> list[str]:
    loss = f"{trial.value:.4f}" if trial.state == COMPLETE else "pruned"
    note = "best" if best else trial.user_attrs.get("reason", "the recipe as it is" if trial.number == 0 else "")
    values = (show(value_in(recipe, trial, key)) for key in keys)
    return [str(trial.number), *values, loss, str(trial.user_attrs.get("seconds", "")), one_line(note)]


def value_in(recipe: Recipe, trial: Any, key: str) -> Any:
    return trial.user_attrs.get("values", {}).get(key, value_of(recipe, key))


def show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def importance(study: optuna.Study, keys: list[str]) -> dict[str, float]:
    """Shares of the loss's variance by key (fANOVA, Hutter et al. 2014); empty with too few trials to say."""
    if len(keys) < 2 or len(complete_trials(study)) < LEAST_COMPARED:
        return {}
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares: dict[str, float] = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError):  # all trials have the same loss
        return {}
    return shares


def complete_trials(study: optuna.Study) -> list[Any]:
    """The trials with a loss and drawn values, which the recipe's own trial has not."""
    return [trial for trial in study.trials if trial.state == COMPLETE and trial.params]


def plot_history(trials: Sequence[Any], target: Path) -> None:
    """Loss over trials with the best so far; pruned ones at their last loss."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    complete = [(trial.number, trial.value) for trial in trials if trial.state == COMPLETE]
    pruned = [(t.number, last_loss(t)) for t in trials if t.state == PRUNED and t.intermediate_values]
    best = [min(value for _, value in complete[: index + 1]) for index in range(len(complete))]
    axes.step([number for number, _ in complete], best, where="post", color="grey", label="best so far")
    axes.plot(*zip(*complete, strict=True), "o", label="complete")
    if pruned:
        axes.plot(*zip(*pruned, strict=True), "x", label="pruned")
    axes.set(title="Trials", xlabel="trial", ylabel="held-out loss (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    save_png(figure, target)


def last_loss(trial: Any) -> float:
    return float(trial.intermediate_values[max(trial.intermediate_values)])


def plot_parameters(recipe: Recipe, trials: Sequence[Any], keys: list[str], target: Path) -> None:
    """One panel per swept key: held-out loss of the complete trials over its value."""
    figure = Figure(figsize=(4 * max(1, len(keys)), 3.5), layout="constrained")
    panels = figure.subplots(1, max(1, len(keys)), squeeze=False, sharey=True)[0]
    complete = [trial for trial in trials if trial.state == COMPLETE]
    for axes, key in zip(panels, keys, strict=False):
        values = [value_in(recipe, trial, key) for trial in complete]
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        axes.plot(values if numeric else [str(value) for value in values], [trial.value for trial in complete], "o")
        axes.set(xlabel=key)
        if is_log(recipe, key):
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="held-out loss (nats)")
    save_png(figure, target)


def is_log(recipe: Recipe, key: str) -> bool:
    choice = recipe.sweep.over[key] if recipe.sweep else None
    return bool(getattr(choice, "log", False))
