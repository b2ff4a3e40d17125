"""The command line; mounts each folder's commands, nothing else."""

import json
import sys
from importlib.metadata import version

import typer
from rich.console import Console

from polytone.contract.errors import PolytoneError

from .adapters import adapters_commands
from .backup import backup, restore
from .base import base_commands
from .chat import chat
from .data import data_commands
from .estimate import estimate
from .evaluate import evaluate
from .keys import keys_commands
from .server import serve, ui
from .traffic import drift, feedback_commands, traffic_commands
from .train import sweep, train

app = typer.Typer(
    name="polytone",
    help="One base model, many brand voices: train QLoRA adapters and serve them behind one OpenAI-compatible API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(base_commands, name="base")
app.add_typer(data_commands, name="data")
app.add_typer(adapters_commands, name="adapters")
app.add_typer(keys_commands, name="keys")
app.add_typer(feedback_commands, name="feedback")
app.add_typer(traffic_commands, name="traffic")
for command in (train, sweep, evaluate, estimate, serve, ui, chat, drift, backup, restore):
    app.command()(command)


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"polytone {version('polytone')}")
        raise typer.Exit


@app.callback()
def options(
    _version: bool = typer.Option(
        False, "--version", callback=show_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


def main() -> None:
    """Run a command; a refusal is one clear message and the exit code of its kind (1 a check failed, 2 bad input)."""
    try:
        app()
    except PolytoneError as error:
        if "--json" in sys.argv:
            print(json.dumps({"error": {"message": error.message, "code": error.code, "param": error.param}}))
        else:
            Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"error: {error.message}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
