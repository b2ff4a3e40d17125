"""The commands `serve` and `ui`."""

from typing import Annotated

import typer

from polytone.serve.settings import read_settings

from .options import DEFAULT_URL, HomeOption, UrlOption


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [POLYTONE_HOST, 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [POLYTONE_PORT, 8000].")] = None,
    base: Annotated[
        str | None, typer.Option(help="Prepared base to serve [POLYTONE_BASE, smollm2-135m-instruct].")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Serve the API and the pages until Ctrl-C.

    Without keys a server listens on this machine only. Every other setting is a variable POLYTONE_... or a line of the
    YAML file that POLYTONE_SETTINGS names: docs/settings.md.

    Example: POLYTONE_MAX_STREAMS=64 polytone serve --port 9000
    """
    settings = read_settings(host=host, port=port, base=base, home=home)
    from polytone.serve.server import run_server

    run_server(settings)


def ui(
    url: UrlOption = DEFAULT_URL,
    port: Annotated[int, typer.Option(help="Port of the pages on 127.0.0.1.")] = 7860,
) -> None:
    """Serve the pages alone, for a server on another machine.

    Example: polytone ui --url https://polytone.example
    """
    from polytone.ui.page import launch

    launch(url, port)
