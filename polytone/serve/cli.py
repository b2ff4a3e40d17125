"""polytone serve, ui and adapters. Heavy libraries are imported when a command runs, so that --help is instant."""

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from polytone.contract.adapter import check_servable, list_versions, read_version
from polytone.contract.base import load_base
from polytone.contract.errors import CheckError, InputError

from .settings import Settings, read_settings

if TYPE_CHECKING:
    from .registry import Registry

HomeOption = Annotated[Path | None, typer.Option(help="Folder for bases, adapters and the database [POLYTONE_HOME].")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document for programs.")]
WaitOption = Annotated[float, typer.Option(help="Seconds to wait for a running server; 0 does not wait.")]
VersionArgument = Annotated[str, typer.Argument(help="name@digest12, as `polytone train` printed it.")]

ALIVE = timedelta(seconds=30)

adapters_commands = typer.Typer(help="Publish, promote and retire versions of voices.", no_args_is_help=True)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [POLYTONE_HOST, 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [POLYTONE_PORT, 8000].")] = None,
    base: Annotated[str | None, typer.Option(help="Prepared base to serve [POLYTONE_BASE].")] = None,
    home: HomeOption = None,
) -> None:
    """Serve the API and the chat page. Every other setting is an environment variable: docs/settings.md."""
    settings = read_settings(host=host, port=port, base=base, home=home)
    from .server import run_server

    run_server(settings)


def ui(
    url: Annotated[str, typer.Option(help="Address of a running Polytone server.")] = "http://127.0.0.1:8000",
    port: Annotated[int, typer.Option(help="Port of the page on 127.0.0.1.")] = 7860,
) -> None:
    """Serve the chat page alone, for a server elsewhere."""
    from polytone.ui.page import launch

    launch(url, port)


@adapters_commands.command("list")
def list_adapters(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List every version on disk and in the registry, with its state."""
    settings = read_settings(home=home)
    registry = open_registry(settings)
    rows = describe_versions(settings, registry)
    if as_json:
        print(json.dumps({"versions": rows}))
        return
    table = Table("voice", "version", "answers", "wanted", "on replicas", box=None)
    for row in rows:
        states = ", ".join(f"{one['state']}{': ' + one['reason'] if one['reason'] else ''}" for one in row["replicas"])
        table.add_row(row["name"], row["version"], "yes" if row["answers"] else "", row["wanted"], states or "-")
    Console(soft_wrap=True).print(table if rows else "No version yet. Train one: polytone train RECIPE")


@adapters_commands.command("show")
def show(version: VersionArgument, home: HomeOption = None) -> None:
    """Print the manifest of a version after checking its files."""
    settings = read_settings(home=home)
    manifest = read_version(settings.paths(), resolve(settings, version))
    print(manifest.model_dump_json(by_alias=True, indent=2))


@adapters_commands.command("publish")
def publish(
    version: VersionArgument, home: HomeOption = None, wait: WaitOption = 60, as_json: JsonOption = False
) -> None:
    """Check a version and ask every server to load it. It answers under its own id at once, under the voice's name
    after `promote`."""
    settings = read_settings(home=home)
    manifest = read_version(settings.paths(), version)
    check_servable(manifest, load_base(settings.paths(), settings.base), settings.max_lora_rank)
    registry = open_registry(settings)
    registry.publish(version)
    tell({"version": version, "state": wait_for(registry, version, wait)}, f"{version} is published", as_json)


@adapters_commands.command("promote")
def promote(
    version: VersionArgument, home: HomeOption = None, wait: WaitOption = 60, as_json: JsonOption = False
) -> None:
    """Let a published version answer for its voice. Servers switch once it is loaded and proven."""
    settings = read_settings(home=home)
    registry = open_registry(settings)
    alias = version.partition("@")[0]
    before = registry.promote(alias, version)
    state = wait_for(registry, version, wait)
    tell(
        {"alias": alias, "version": version, "before": before, "state": state},
        f"{alias} is answered by {version}" + (f" (before: {before})" if before else ""),
        as_json,
    )


@adapters_commands.command("retire")
def retire(
    version: Annotated[str, typer.Argument(help="A version, or a voice's name to take the whole voice away.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop routing to a version, let its answers end, and free its memory. Its files stay."""
    registry = open_registry(read_settings(home=home))
    if "@" not in version:
        version = registry.remove_alias(version)
    registry.retire(version)
    tell({"version": version, "state": "retired"}, f"{version} is retired", as_json)


def open_registry(settings: Settings) -> "Registry":
    from .database import open_database
    from .registry import Registry

    return Registry(open_database(settings.database()))


def resolve(settings: Settings, version: str) -> str:
    """A version id as it is; a voice's name as the version that answers for it."""
    if "@" in version:
        return version
    found = open_registry(settings).desired().aliases.get(version)
    if found is None:
        raise InputError(f"{version!r} is neither a version id nor a promoted voice.", code="version_not_found")
    return found


def describe_versions(settings: Settings, registry: "Registry") -> list[dict[str, Any]]:
    answers = set(registry.desired().aliases.values())
    wanted = {row.id: row.state for row in registry.versions()}
    heard = registry.residency(ALIVE)
    everything = sorted(set(wanted) | set(list_versions(settings.paths())))
    return [
        {
            "name": version.partition("@")[0],
            "version": version,
            "answers": version in answers,
            "wanted": wanted.get(version, "on disk"),
            "replicas": [
                {"replica": one.replica, "state": one.state, "reason": one.reason}
                for one in heard
                if one.version == version
            ],
        }
        for version in everything
    ]


def wait_for(registry: "Registry", version: str, seconds: float) -> str:
    """Wait until every server heard from lately has the version ready.

    Returns "ready", or "no server" if none is running.

    Raises:
        CheckError: `version_failed` with the reason, or `not_ready_in_time`.
    """
    if not registry.replicas(ALIVE):
        return "no server"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        states = [one for one in registry.residency(ALIVE) if one.version == version]
        failed = next((one for one in states if one.state == "failed"), None)
        if failed is not None:
            raise CheckError(f"{version} failed on {failed.replica}: {failed.reason}", code="version_failed")
        if len(states) == len(registry.replicas(ALIVE)) and all(one.state == "ready" for one in states):
            return "ready"
        time.sleep(0.2)
    if seconds == 0:
        return "asked for"
    raise CheckError(
        f"{version} was not ready within {seconds:.0f} s. See: polytone adapters list",
        code="not_ready_in_time",
    )


def tell(document: dict[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(document))
    elif document["state"] == "no server":
        print(f"{sentence} once a server runs: polytone serve")
    else:
        print(f"{sentence}.")
