"""The commands `base prepare` and `base list`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from polytone.contract.base import list_bases, load_base
from polytone.serve.settings import read_home
from polytone.train.libraries import quiet_libraries

from .options import HomeOption, JsonOption

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
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a base model, quantize it to NF4 and store it. Done once; again is instant."""
    where = read_home(home)
    name = base_id or Path(model).name.lower()
    if name in list_bases(where):
        base = load_base(where, name)  # without the seconds that the libraries take to import
    else:
        quiet_libraries(offline=False)
        from polytone.progress import Progress
        from polytone.train.base_model import prepare_base

        with Progress(Console(stderr=True)) as progress:
            base = prepare_base(where, model, base_id, licence, progress)
    if as_json:
        print(base.model_dump_json(by_alias=True))
    else:
        print(f"Base {base.id} is ready (digest {base.digest[:12]}, {base.licence}, up to {base.max_length} tokens).")
