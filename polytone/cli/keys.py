"""The commands `keys create`, `keys list` and `keys revoke`."""

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.table import Table

from polytone.contract.base import list_bases
from polytone.contract.errors import InputError
from polytone.serve.settings import Settings, read_settings

from .options import HomeOption, JsonOption
from .output import did_you_mean, print_change, print_table
from .state import Stores, actor, describe_versions, open_state

keys_commands = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


@keys_commands.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="Name of the key, for logs and for revoking it.")],
    kind: Annotated[
        str, typer.Option(help="inference: ask for answers. admin: change what answers, read metrics.")
    ] = "inference",
    adapters: Annotated[
        str | None, typer.Option(help="Models it may ask for, separated by commas; by default all.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="On each replica.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="On each replica.")] = None,
    concurrent_requests: Annotated[int | None, typer.Option(min=1, help="On each replica.")] = None,
    days: Annotated[int | None, typer.Option(min=1, max=3650, help="Days until it expires; by default never.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and show it, once. From the first key on, every request to a server needs one.

    Example: polytone keys create --name support-bot --adapters acme --requests-per-minute 60
    """
    settings = read_settings(home=home)
    from polytone.serve.auth.keys import Kind

    if kind not in list(Kind):
        raise InputError(f"--kind: {kind!r} is neither inference nor admin.", code="invalid_kind", param="kind")
    names = frozenset(part.strip() for part in adapters.split(",")) if adapters is not None else None
    state = open_state(settings, create=True)
    key, text = state.keys.create(
        name,
        Kind(kind),
        actor(),
        adapters=names,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrent_requests=concurrent_requests,
        expires_at=datetime.now(UTC) + timedelta(days=days) if days is not None else None,
    )
    unknown = unknown_models(settings, state, names or frozenset())
    if as_json:
        print(json.dumps({"key": text, **key.as_json(), "unknown_adapters": sorted(unknown)}))
        return
    print(text)
    print(f"This is the {key.kind} key {key.name}. It is shown only now.", file=sys.stderr)
    for one, suggestion in unknown.items():
        print(f"Warning: there is no voice {one!r} here yet.{suggestion}", file=sys.stderr)


@keys_commands.command("list")
def list_keys(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List every key ever made, without its secret."""
    settings = read_settings(home=home)
    keys = open_state(settings).keys.all()
    if as_json:
        print(json.dumps({"keys": [key.as_json() for key in keys]}))
        return
    table = Table("name", "kind", "models", "per minute", "expires", "state", box=None)
    for key in keys:
        rates = ", ".join(
            f"{limit} {unit}"
            for limit, unit in ((key.requests_per_minute, "requests"), (key.tokens_per_minute, "tokens"))
            if limit is not None
        )
        names = ", ".join(sorted(key.adapters)) if key.adapters is not None else "all"
        expires = f"{key.expires_at:%Y-%m-%d}" if key.expires_at else ""
        state = "live" if key.live() else "revoked" if key.revoked_at else "expired"
        table.add_row(key.name, key.kind.value, names, rates, expires, state)
    if keys:
        print_table(table)
    else:
        print(f"No key yet in {settings.paths().root}. Without keys, a server answers its own machine only.")


@keys_commands.command("revoke")
def revoke_key(
    name: Annotated[str, typer.Argument(help="The key's name.")], home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Revoke a key; servers refuse it within seconds."""
    key = open_state(read_settings(home=home)).keys.revoke(name, actor())
    print_change({**key.as_json(), "state": "revoked"}, f"{name} is revoked.", as_json)


def unknown_models(settings: Settings, state: Stores, names: frozenset[str]) -> dict[str, str]:
    """The names of no base, voice or version here, each with a sentence that names similar ones."""
    versions = {version for row in describe_versions(settings, state) for version in (row["name"], row["version"])}
    known = versions | set(list_bases(settings.paths()))
    return {name: did_you_mean(name, known) for name in sorted(names - known)}
