"""The commands `train` and `sweep`. Heavy libraries are imported when a command runs, so that --help is instant."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from polytone.contract.manifest import Evaluation, Manifest
from polytone.serve.settings import read_home
from polytone.train.libraries import quiet_libraries

from .options import HomeOption, JsonOption


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file; docs/recipes.md lists every key.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the last run of this recipe that was cut off.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Prove what can be proven beforehand, and stop.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Train even where memory is estimated not to do.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a voice by a recipe, measure it, and write it as an adapter version.

    Several GPUs: accelerate launch --config_file deploy/accelerate/processes.yaml -m polytone train RECIPE
    """
    from polytone.train.recipe import read_recipe

    where = read_home(home)
    checked = read_recipe(recipe)
    quiet_libraries()
    from polytone.progress import Progress
    from polytone.train.job import check as check_job
    from polytone.train.job import read_job
    from polytone.train.publish import publish
    from polytone.train.run import run as run_recipe
    from polytone.train.runs.distributed import is_main
    from polytone.train.runs.preflight import sentence

    if check:
        checks = check_job(read_job(where, checked), force)
        print(checks.model_dump_json() if as_json else sentence(checks))
        return
    with Progress(Console(stderr=True, quiet=not is_main())) as progress:
        run = run_recipe(where, checked, progress, resume, force)
        manifest = publish(where, run)
    loss = manifest.evaluation
    if as_json:
        print(
            json.dumps(
                {
                    "version": manifest.version,
                    "folder": str(where.adapter_folder(manifest.version)),
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
        f"Next: polytone adapters publish {manifest.version} && polytone adapters promote {manifest.version}"
    )


def sweep(
    recipe: Annotated[Path, typer.Argument(help="YAML file with a sweep section; docs/recipes.md tells how.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try many values of a recipe's keys, keep score on held-out rows, and write the best recipe out.

    A sweep that was cut off goes on where it was when the command is given again.
    """
    from polytone.train.recipe import read_recipe

    where = read_home(home)
    checked = read_recipe(recipe)
    quiet_libraries()
    from polytone.progress import Progress
    from polytone.train.sweep.study import run_sweep

    with Progress(Console(stderr=True)) as progress:
        result = run_sweep(where, checked, progress)
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


def of_parent(manifest: Manifest, evaluation: Evaluation) -> str:
    """The end of a sentence about losses, where there is a parent to name."""
    if evaluation.parent_loss is None:
        return ""
    return f"; its parent {manifest.parent} has {evaluation.parent_loss:.3f}"
