"""The commands `serve` and `ui`."""

from typing import Annotated

import typer

from polytone.serve.settings import read_settings

from .options import HomeOption


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [POLYTONE_HOST, 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [POLYTONE_PORT, 8000].")] = None,
    base: Annotated[str | None, typer.Option(help="Prepared base to serve [POLYTONE_BASE].")] = None,
    home: HomeOption = None,
) -> None:
    """Serve the API and the chat page. Every other setting is an environment variable: docs/settings.md."""
    settings = read_settings(host=host, port=port, base=base, home=home)
    from polytone.serve.server import run_server

    run_server(settings)


def ui(
    url: Annotated[str, typer.Option(help="Address of a running Polytone server.")] = "http://127.0.0.1:8000",
    port: Annotated[int, typer.Option(help="Port of the page on 127.0.0.1.")] = 7860,
) -> None:
    """Serve the chat page alone, for a server elsewhere."""
    from polytone.ui.page import launch

    launch(url, port)
