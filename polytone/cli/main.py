"""The `polytone` command: every group of commands, and what is printed when one is refused."""

import json
import sys
from importlib.metadata import version
from typing import NoReturn

import typer
from rich.console import Console

from polytone.contract.errors import PolytoneError, StorageError

from .adapters import adapters_commands
from .backup import backup, restore
from .base import base_commands
from .chat import chat
from .data import data_commands
from .estimate import estimate
from .evaluate import evaluate
from .exit_codes import ExitCode
from .keys import keys_commands
from .server import serve, ui
from .traffic import drift, feedback_commands, traffic_commands
from .train import sweep, train

app = typer.Typer(
    name="polytone",
    help="""One base model, many brand voices: train QLoRA adapters and serve them behind one OpenAI-compatible API.

    From conversations to a voice that answers: base prepare, data check, train, evaluate, adapters publish, adapters
    promote, serve, chat. Each command's --help has more.""",
    epilog="Exit codes: 0 done, 1 a check or gate failed or something is unavailable, 2 wrong input, 130 Ctrl-C.",
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


def show_version(requested: bool) -> None:
    if requested:
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
    """Run a command. A refusal is printed as one message, and the exit code says of which kind it is (`ExitCode`)."""
    try:
        app()
    except PolytoneError as error:
        exit_with(error)
    except OSError as error:
        if error.errno is None:
            raise  # not of the operating system: some libraries derive their own errors from it
        place = f"{error.filename}: " if error.filename is not None else ""
        exit_with(StorageError(f"{place}{error.strerror}", code="disk_error"))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)


def exit_with(error: PolytoneError) -> NoReturn:
    if "--json" in sys.argv:
        print(json.dumps({"error": {"message": error.message, "code": error.code, "param": error.param}}))
    else:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"error: {error.message}")
    sys.exit(error.exit_code)
