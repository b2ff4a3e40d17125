"""The commands `base prepare` and `base list`."""

import json
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from polytone.contract.base import list_bases, load_base
from polytone.serve.settings import read_home
from polytone.train.libraries import quiet_libraries

from .options import HomeOption, JsonOption
from .output import print_table

# Short names of models on the hub; an instruction-tuned one, because training needs its chat template.
HUB_IDS = MappingProxyType({"mistral-7b": "mistralai/Mistral-7B-Instruct-v0.3"})

base_commands = typer.Typer(
    help="Prepare the base models that voices are trained on and served with.", no_args_is_help=True
)


@base_commands.command("prepare")
def prepare(
    model: Annotated[
        str, typer.Argument(help="smollm2-135m-instruct, mistral-7b, a folder in Hugging Face format, or a hub id.")
    ] = "smollm2-135m-instruct",
    base_id: Annotated[str | None, typer.Option("--id", help="Name to serve it under.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, if the source does not say.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a base model, quantize it to NF4 and store it. Done once; again is instant.

    Example: polytone base prepare ./my-model --id my-model
    """
    paths = read_home(home)
    name = base_id or Path(model).name.lower()
    if name in list_bases(paths):
        base = load_base(paths, name)  # without the seconds that the libraries take to import
    else:
        quiet_libraries(offline=False)
        from polytone.progress import Progress
        from polytone.train.base_model import prepare_base

        with Progress(Console(stderr=True)) as progress:
            base = prepare_base(paths, HUB_IDS.get(model, model), name, licence, progress)
    if as_json:
        print(base.model_dump_json(by_alias=True))
    else:
        print(f"Base {base.id} is ready (digest {base.digest[:12]}, {base.licence}, up to {base.max_length} tokens).")


@base_commands.command("list")
def list_prepared(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the bases that are prepared: a recipe's `base` and POLYTONE_BASE name one of them."""
    paths = read_home(home)
    bases = [load_base(paths, name) for name in list_bases(paths)]
    if as_json:
        print(json.dumps({"bases": [base.model_dump(mode="json", by_alias=True) for base in bases]}))
        return
    table = Table("base", "digest", "tokens", "licence", "made of", box=None)
    for base in bases:
        table.add_row(base.id, base.digest[:12], str(base.max_length), base.licence, base.source)
    if bases:
        print_table(table)
    else:
        print(f"No base yet in {paths.root}. Prepare the default one: polytone base prepare")
