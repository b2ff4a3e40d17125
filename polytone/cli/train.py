"""The commands `train` and `sweep`. Heavy libraries are imported when a command runs, so that --help is instant."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from polytone.contract.manifest import Evaluation, Manifest
from polytone.serve.settings import read_home
from polytone.train.libraries import quiet_libraries

from .options import HomeOption, JsonOption

if TYPE_CHECKING:
    from polytone.train.runs.record import Interrupted


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file; docs/recipes.md lists every key.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the last interrupted run of this recipe.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Check rows, memory and template without training.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Train even where the estimated memory is not available.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a voice by a recipe, measure it, and write it as an adapter version.

    Several GPUs: accelerate launch --config_file deploy/accelerate/processes.yaml -m polytone train RECIPE
    """
    from polytone.train.recipe import read_recipe

    paths = read_home(home)
    content = read_recipe(recipe)
    quiet_libraries()
    from polytone.progress import Progress
    from polytone.train.job import check as check_job
    from polytone.train.job import read_job
    from polytone.train.publish import publish
    from polytone.train.run import run as run_recipe
    from polytone.train.runs.distributed import is_main
    from polytone.train.runs.preflight import summary
    from polytone.train.runs.record import Interrupted

    if check:
        checks = check_job(read_job(paths, content), force)
        print(checks.model_dump_json() if as_json else summary(checks))
        return
    console = Console(stderr=True, quiet=not is_main(), highlight=False, soft_wrap=True)
    try:
        with Progress(console) as progress:
            run = run_recipe(paths, content, progress, resume, force)
            manifest = publish(paths, run)
    except Interrupted as interrupted:
        console.print(interruption(interrupted, recipe))
        raise
    loss = manifest.evaluation
    if as_json:
        print(
            json.dumps(
                {
                    "version": manifest.version,
                    "folder": str(paths.adapter_folder(manifest.version)),
                    "run": str(run.folder),
                    "evaluation": loss.model_dump(),
                    "seconds": round(run.seconds, 1),
                }
            )
        )
        return
    print(
        f"{manifest.version} is trained: loss per assistant token {loss.adapter_loss:.3f}, the base has "
        f"{loss.base_loss:.3f} ({1 - loss.adapter_loss / loss.base_loss:.0%} lower){of_parent(manifest, loss)}.\n"
        f"Metrics and plot: {run.folder}\n"
        f"Next: polytone evaluate {manifest.version}"
    )


def sweep(
    recipe: Annotated[Path, typer.Argument(help="YAML file with a sweep section; docs/recipes.md explains it.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try many values of a recipe's keys, compare them on held-out rows, and write the best recipe to a file.

    Run the command again to continue an interrupted sweep.
    """
    from polytone.train.recipe import read_recipe

    paths = read_home(home)
    content = read_recipe(recipe)
    quiet_libraries()
    from polytone.progress import Progress
    from polytone.train.sweep.study import run_sweep

    with Progress(Console(stderr=True)) as progress:
        result = run_sweep(paths, content, progress)
    if as_json:
        print(json.dumps({**vars(result), "folder": str(result.folder), "best": str(result.folder / "best.yaml")}))
        return
    values = ", ".join(f"{key} {value}" for key, value in result.best_values.items()) or "the recipe as it is"
    print(
        f"Best of {result.trials} trials ({result.pruned} pruned): held-out loss {result.best_loss:.4f} with {values}; "
        f"the recipe as it was has {result.own_loss:.4f}.\n"
        f"Report and plots: {result.folder / 'report.md'}\n"
        f"Next: polytone train {result.folder / 'best.yaml'}"
    )


def interruption(interrupted: "Interrupted", recipe: Path) -> str:
    """Where the run stopped, and how to continue it."""
    state = interrupted.state
    command = f"polytone train {recipe} --resume"
    if (interrupted.folder / "adapter").is_dir():
        return f"Interrupted after training, before the measurements were done. Continue: {command}"
    place = f"Interrupted at step {state.step} of {state.steps}"
    if state.checkpoint is None:
        return f"{place}, before the first checkpoint. Start again: {command}"
    return f"{place}. Continue from step {state.checkpoint}: {command}"


def of_parent(manifest: Manifest, evaluation: Evaluation) -> str:
    """The end of a sentence about losses, where there is a parent to name."""
    if evaluation.parent_loss is None:
        return ""
    return f"; its parent {manifest.parent} has {evaluation.parent_loss:.3f}"
