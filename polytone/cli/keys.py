"""The commands `keys create`, `keys list` and `keys revoke`."""

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from polytone.contract.errors import InputError
from polytone.serve.settings import read_settings

from .options import HomeOption, JsonOption
from .output import tell
from .state import actor, open_state

keys_commands = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


@keys_commands.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="What the key is called, for logs and for revoking it.")],
    kind: Annotated[str, typer.Option(help="inference: ask for answers. admin: change what answers.")] = "inference",
    adapters: Annotated[
        str | None, typer.Option(help="Model names it may ask for, with commas; all by default.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="On each replica.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="On each replica.")] = None,
    concurrent_requests: Annotated[int | None, typer.Option(min=1, help="On each replica.")] = None,
    days: Annotated[int | None, typer.Option(min=1, max=3650, help="Days until it expires; never by default.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and show it, once. With the first key, every request to the server needs one."""
    settings = read_settings(home=home)
    from polytone.serve.auth.keys import Kind

    if kind not in list(Kind):
        raise InputError(f"--kind: {kind!r} is neither inference nor admin.", code="invalid_kind", param="kind")
    key, text = open_state(settings).keys.create(
        name,
        Kind(kind),
        actor(),
        frozenset(part.strip() for part in adapters.split(",")) if adapters is not None else None,
        requests_per_minute,
        tokens_per_minute,
        concurrent_requests,
        datetime.now(UTC) + timedelta(days=days) if days is not None else None,
    )
    if as_json:
        print(json.dumps({"key": text, **key.as_json()}))
    else:
        print(text)
        print(f"This is the {key.kind} key {key.name}. It is shown now and never again.", file=sys.stderr)


@keys_commands.command("list")
def list_keys(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List every key ever made, without its secret."""
    keys = open_state(read_settings(home=home)).keys.all()
    if as_json:
        print(json.dumps({"keys": [key.as_json() for key in keys]}))
        return
    table = Table("name", "kind", "adapters", "per minute", "expires", "state", box=None)
    for key in keys:
        rates = ", ".join(
            f"{limit} {what}"
            for limit, what in ((key.requests_per_minute, "requests"), (key.tokens_per_minute, "tokens"))
            if limit is not None
        )
        names = ", ".join(sorted(key.adapters)) if key.adapters is not None else "all"
        expires = f"{key.expires_at:%Y-%m-%d}" if key.expires_at else ""
        state = "live" if key.live() else "revoked" if key.revoked_at else "expired"
        table.add_row(key.name, key.kind.value, names, rates, expires, state)
    Console(soft_wrap=True).print(table if keys else "No key yet: this machine is served without one.")


@keys_commands.command("revoke")
def revoke_key(
    name: Annotated[str, typer.Argument(help="The key's name.")], home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Revoke a key; servers refuse it within seconds."""
    key = open_state(read_settings(home=home)).keys.revoke(name, actor())
    tell({**key.as_json(), "state": "revoked"}, f"{name} is revoked", as_json)
