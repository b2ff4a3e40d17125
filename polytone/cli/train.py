"""polytone base and train. Heavy libraries are imported when a command runs, so that --help is instant."""

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from polytone.contract.adapter import Evaluation, Manifest, list_versions
from polytone.contract.base import list_bases, load_base
from polytone.contract.errors import InputError
from polytone.contract.home import Home
from polytone.contract.version_id import voice_of

HomeOption = Annotated[Path, typer.Option(envvar="POLYTONE_HOME", help="Folder for bases, adapters and runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document for programs.")]
DEFAULT_HOME = Path(".polytone")

base_commands = typer.Typer(help="Prepare the base model that voices are trained on.", no_args_is_help=True)


@base_commands.callback()
def base_help() -> None:
    pass


@base_commands.command("prepare")
def prepare(
    model: Annotated[
        str, typer.Argument(help="A known name, a folder in Hugging Face format, or a hub id.")
    ] = "smollm2-135m-instruct",
    base_id: Annotated[str | None, typer.Option("--id", help="Name to serve it under.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, if the source does not say.")] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Fetch a base model, quantize it to NF4 and store it. Done once; again is instant."""
    name = base_id or Path(model).name.lower()
    if name in list_bases(Home(home)):
        base = load_base(Home(home), name)  # without the seconds that the libraries take to import
    else:
        quiet_libraries(offline=False)
        from polytone.train.base_model import prepare_base
        from polytone.train.progress import Progress

        with Progress(Console(stderr=True)) as progress:
            base = prepare_base(Home(home), model, base_id, licence, progress)
    if as_json:
        print(base.model_dump_json(by_alias=True))
    else:
        print(f"Base {base.id} is ready (digest {base.digest[:12]}, {base.licence}, up to {base.max_length} tokens).")


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file; docs/recipes.md lists every key.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the last run of this recipe that was cut off.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Prove what can be proven beforehand, and stop.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Train even where memory is estimated not to do.")] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Train a voice by a recipe, measure it, and write it as an adapter version.

    Several GPUs: accelerate launch --config_file deploy/accelerate/processes.yaml -m polytone train RECIPE
    """
    from polytone.train.recipe import read_recipe

    checked = read_recipe(recipe)
    quiet_libraries()
    from polytone.train.job import check as check_job
    from polytone.train.job import read_job
    from polytone.train.progress import Progress
    from polytone.train.publish import publish
    from polytone.train.run import run as run_recipe
    from polytone.train.runs.distributed import is_main
    from polytone.train.runs.preflight import sentence

    if check:
        checks = check_job(read_job(Home(home), checked), force)
        print(checks.model_dump_json() if as_json else sentence(checks))
        return
    with Progress(Console(stderr=True, quiet=not is_main())) as progress:
        run = run_recipe(Home(home), checked, progress, resume, force)
        manifest = publish(Home(home), run)
    loss = manifest.evaluation
    if as_json:
        print(
            json.dumps(
                {
                    "version": manifest.version,
                    "folder": str(Home(home).adapter_folder(manifest.version)),
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
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Try many values of a recipe's keys, keep score on held-out rows, and write the best recipe out.

    A sweep that was cut off goes on where it was when the command is given again.
    """
    from polytone.train.recipe import read_recipe

    checked = read_recipe(recipe)
    quiet_libraries()
    from polytone.train.progress import Progress
    from polytone.train.sweep.study import run_sweep

    with Progress(Console(stderr=True)) as progress:
        result = run_sweep(Home(home), checked, progress)
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


def newest(home: Home, version: str) -> str:
    if "@" in version:
        return version
    mine = [v for v in list_versions(home) if voice_of(v) == version]
    if not mine:
        raise InputError(f"No version of {version!r} is on disk under {home.adapters}.", code="version_not_found")
    return mine[-1]


def quiet_libraries(offline: bool = True) -> None:
    """No usage statistics, no bars of their own, no chatter, and unless a hub is asked for, no network."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.filterwarnings("ignore")
    for name in ("bitsandbytes", "transformers", "trl", "peft", "datasets", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
