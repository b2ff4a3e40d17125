"""What a sweep found: a table, plots, and the best recipe as a file that trains."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from polytone.contract.files import write_whole
from polytone.train.recipe import Recipe

from .space import value_of, with_values

COMPLETE, PRUNED = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED


def write_report(folder: Path, recipe: Recipe, study: optuna.Study) -> None:
    """report.md, history.png, parameters.png and best.yaml; written again after each trial."""
    trials = [trial for trial in study.trials if trial.state in (COMPLETE, PRUNED)]
    keys = list(recipe.sweep.over) if recipe.sweep else []
    plot_history(trials, folder / "history.png")
    plot_parameters(recipe, trials, keys, folder / "parameters.png")
    write_whole(folder / "best.yaml", best_recipe(folder, recipe, study, len(trials)))
    write_whole(folder / "report.md", report(recipe, study, trials, keys))


def best_recipe(folder: Path, recipe: Recipe, study: optuna.Study, trials: int) -> str:
    """YAML of the recipe with the best trial's values; files are named relative to `folder`."""
    best = with_values(recipe, study.best_trial.user_attrs["values"])
    content = best.model_dump(mode="json", exclude_unset=True)
    for key in ("train", "held_out"):
        if content["data"].get(key):
            content["data"][key] = os.path.relpath(content["data"][key], folder)
    head = f"# The best of {trials} trials: held-out loss {study.best_value:.6f} nats per assistant token.\n"
    return head + yaml.safe_dump(content, sort_keys=False)


def report(recipe: Recipe, study: optuna.Study, trials: Sequence[Any], keys: list[str]) -> str:
    own, best = study.trials[0], study.best_trial
    gain = 1 - best.value / own.value
    rows = "\n".join(row(recipe, trial, keys, trial.number == best.number) for trial in ordered(trials))
    return f"""# Sweep of {recipe.name}

Held-out loss per assistant token (nats), lower is better. The best of {len(trials)} trials is trial {best.number} with
**{best.value:.4f}**; the recipe as it was has {own.value:.4f} ({gain:.1%} lower). `best.yaml` trains it.

| trial | {" | ".join(f"`{key}`" for key in keys)} | held-out loss | seconds | |
|---|{"---|" * len(keys)}---|---|---|
{rows}

{influence(study, keys)}
![Loss by trial](history.png)

![Loss by parameter](parameters.png)
"""


def ordered(trials: Sequence[Any]) -> list[Any]:
    return sorted(trials, key=lambda trial: (trial.state != COMPLETE, trial.value or 0.0, trial.number))


def row(recipe: Recipe, trial: Any, keys: list[str], best: bool) -> str:
    values = " | ".join(show(value_in(recipe, trial, key)) for key in keys)
    loss = f"{trial.value:.4f}" if trial.state == COMPLETE else "pruned"
    note = "best" if best else trial.user_attrs.get("reason", "the recipe as it is" if trial.number == 0 else "")
    return f"| {trial.number} | {values} | {loss} | {trial.user_attrs.get('seconds', '')} | {note} |"


def value_in(recipe: Recipe, trial: Any, key: str) -> Any:
    return trial.user_attrs.get("values", {}).get(key, value_of(recipe, key))


def show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def influence(study: optuna.Study, keys: list[str]) -> str:
    """Shares of the loss's variance (fANOVA, Hutter et al. 2014), where there are trials enough to say."""
    complete = [trial for trial in study.trials if trial.state == COMPLETE and trial.params]
    if len(keys) < 2 or len(complete) < 4:
        return ""
    try:
        shares = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    except (RuntimeError, ValueError):  # every trial alike
        return ""
    if not shares:
        return ""
    told = ", ".join(f"`{key}` {share:.0%}" for key, share in shares.items())
    return f"Share of the differences that each key explains, from {len(complete)} trials: {told}.\n"


def plot_history(trials: Sequence[Any], target: Path) -> None:
    """Loss over trials with the best so far; pruned ones at their last known loss."""
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
    save(figure, target)


def last_loss(trial: Any) -> float:
    return float(trial.intermediate_values[max(trial.intermediate_values)])


def plot_parameters(recipe: Recipe, trials: Sequence[Any], keys: list[str], target: Path) -> None:
    """One panel a swept key: held-out loss of the complete trials over its value."""
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
    save(figure, target)


def is_log(recipe: Recipe, key: str) -> bool:
    choice = recipe.sweep.over[key] if recipe.sweep else None
    return bool(getattr(choice, "log", False))


def save(figure: Figure, target: Path) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    write_whole(target, drawn.getvalue())
