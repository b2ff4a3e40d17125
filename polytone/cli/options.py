"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8000"

HomeOption = Annotated[
    Path | None, typer.Option(help="Folder for bases, adapters, runs and the database [POLYTONE_HOME, .polytone].")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")]
WaitOption = Annotated[float, typer.Option(help="Seconds to wait for running servers; 0 does not wait.")]
UrlOption = Annotated[str, typer.Option(help="Address of a running Polytone server.")]
VersionArgument = Annotated[str, typer.Argument(help="A version (name@digest12), as `polytone train` printed it.")]

ForceOption = Annotated[
    bool, typer.Option("--force", help="Let it answer although it failed its gates; the audit log records that.")
]
