"""The commands of `adapters`. Heavy libraries are imported when a command runs: --help is instant."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from polytone.contract.adapter import check_servable
from polytone.contract.base import load_base
from polytone.contract.errors import InputError
from polytone.contract.version_id import voice_of
from polytone.serve.settings import read_settings

from .options import ForceOption, HomeOption, JsonOption, VersionArgument, WaitOption
from .output import tell
from .state import actor, describe_versions, open_state, open_store, read_here, resolve

if TYPE_CHECKING:
    from polytone.serve.adapters.rollout import Rollout

adapters_commands = typer.Typer(
    help="Publish, promote and retire versions of voices. POLYTONE_ADAPTER_STORE names where servers get their files.",
    no_args_is_help=True,
)


@adapters_commands.command("list")
def list_adapters(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List every version on disk and in the registry, with its state."""
    settings = read_settings(home=home)
    store = open_store(settings)
    rows = describe_versions(settings, open_state(settings))
    if as_json:
        print(json.dumps({"versions": rows, "store": str(store) if store is not None else None}))
        return
    table = Table("voice", "version", "share", "wanted", "on replicas", box=None)
    for row in rows:
        states = ", ".join(f"{one['state']}{': ' + one['reason'] if one['reason'] else ''}" for one in row["replicas"])
        table.add_row(
            row["name"], row["version"], f"{row['share']:.0%}" if row["share"] else "", row["wanted"], states or "-"
        )
    Console(soft_wrap=True).print(table if rows else "No version yet. Train one: polytone train RECIPE")
    if store is not None:
        print(f"Servers fetch versions from {store} (POLYTONE_ADAPTER_STORE).")


@adapters_commands.command("show")
def show(version: VersionArgument, home: HomeOption = None) -> None:
    """Print the manifest of a version after checking its files; one that is not here comes from the adapter store."""
    settings = read_settings(home=home)
    store = open_store(settings)
    manifest = read_here(settings, store, resolve(settings, version))
    print(manifest.model_dump_json(by_alias=True, indent=2))
    if store is not None:
        print(f"Servers fetch it from {store.place(manifest.version)}", file=sys.stderr)


@adapters_commands.command("publish")
def publish(
    version: VersionArgument, home: HomeOption = None, wait: WaitOption = 60, as_json: JsonOption = False
) -> None:
    """Check a version and ask every server to load it. It answers under its own id at once, under the voice's name
    after `promote`. With POLYTONE_ADAPTER_STORE its files are written there first, for servers to fetch."""
    from .wait import wait_until_ready

    settings = read_settings(home=home)
    store = open_store(settings)
    manifest = read_here(settings, store, version)
    check_servable(manifest, load_base(settings.paths(), settings.base), settings.max_lora_rank)
    if store is not None:
        store.put(settings.paths().adapter_folder(version), version)
    state = open_state(settings)
    state.registry.publish(version, actor())
    said = wait_until_ready(state.replicas, version, wait)
    tell({"version": version, "state": said}, f"{version} is published", as_json)


@adapters_commands.command("promote")
def promote(
    version: VersionArgument,
    force: ForceOption = False,
    home: HomeOption = None,
    wait: WaitOption = 60,
    as_json: JsonOption = False,
) -> None:
    """Let a published version answer for its voice. Servers switch once it is loaded and proven.

    A version whose evaluation failed its gates is refused with every reason, unless you --force it.
    """
    settings = read_settings(home=home)
    state = open_state(settings)
    from polytone.serve.adapters.promotion_gates import Gates, evaluations_of

    from .wait import wait_until_routed

    voice = voice_of(version)
    before = state.registry.desired().rollouts.get(voice)
    gates = Gates(settings.paths(), force)
    rollout = state.registry.promote(voice, version, actor(), before.generation if before else None, gates)
    known = evaluations_of(settings.paths(), rollout.versions)
    said = wait_until_routed(state.replicas, voice, rollout, wait)
    tell(
        {"voice": voice, **rollout.as_json(), "before": before.as_json() if before else None, "state": said, **known},
        f"{voice} is answered by {version}" + (f" (before: {in_words(before)})" if before else ""),
        as_json,
    )
    warn(known, as_json)


@adapters_commands.command("canary")
def canary(
    version: VersionArgument,
    percent: Annotated[int, typer.Argument(min=1, max=99, help="Share of the conversations it answers.")],
    force: ForceOption = False,
    home: HomeOption = None,
    wait: WaitOption = 60,
    as_json: JsonOption = False,
) -> None:
    """Let a published version answer a share of its voice's conversations; a conversation stays with its version.

    A version whose evaluation failed its gates is refused with every reason, unless you --force it.
    """
    settings = read_settings(home=home)
    state = open_state(settings)
    voice = voice_of(version)
    before = state.registry.desired().rollouts.get(voice)
    stable = [part.version for part in before.parts if part.version != version] if before else []
    if before is None or not stable:
        raise InputError(
            f"{voice} has no version to share with. Promote one first: polytone adapters promote {version}",
            code="rollout_invalid",
        )
    from polytone.serve.adapters.promotion_gates import Gates, evaluations_of
    from polytone.serve.adapters.rollout import Part

    from .wait import wait_until_routed

    gates = Gates(settings.paths(), force)
    parts = [Part(stable[0], 100 - percent), Part(version, percent)]
    rollout = state.registry.roll_out(voice, parts, actor(), before.generation, action="canary", gates=gates)
    known = evaluations_of(settings.paths(), rollout.versions)
    said = wait_until_routed(state.replicas, voice, rollout, wait)
    tell(
        {"voice": voice, **rollout.as_json(), "before": before.as_json(), "state": said, **known},
        f"{voice} is answered by {in_words(rollout)}",
        as_json,
    )
    warn(known, as_json)


@adapters_commands.command("rollback")
def rollback(
    voice: Annotated[str, typer.Argument(help="The voice's name.")],
    home: HomeOption = None,
    wait: WaitOption = 60,
    as_json: JsonOption = False,
) -> None:
    """Go back to the rollout before the last; again goes back further."""
    from .wait import wait_until_routed

    state = open_state(read_settings(home=home))
    before = state.registry.desired().rollouts.get(voice)
    rollout = state.registry.roll_back(voice, actor(), before.generation if before else None)
    said = wait_until_routed(state.replicas, voice, rollout, wait)
    who = in_words(rollout) if rollout.parts else "nobody"
    tell({"voice": voice, **rollout.as_json(), "state": said}, f"{voice} is answered by {who}", as_json)


@adapters_commands.command("retire")
def retire(
    version: Annotated[str, typer.Argument(help="A version, or a voice's name to take the whole voice away.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop routing to a version, let its answers end, and free its memory. Its files stay."""
    registry = open_state(read_settings(home=home)).registry
    versions = [version] if "@" in version else registry.remove_voice(version, actor())
    for one in versions:
        registry.retire(one, actor())
    tell({"versions": versions, "state": "retired"}, f"{', '.join(versions)} is retired", as_json)


@adapters_commands.command("pack")
def pack(
    version: VersionArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
    home: HomeOption = None,
) -> None:
    """Write a version as the tar.gz that POST /admin/adapters/NAME/versions takes."""
    from polytone.serve.adapters.archive import pack_version

    target = output or Path(f"{version.replace('@', '-')}.tar.gz")
    pack_version(read_settings(home=home).paths(), version, target)
    print(target)


@adapters_commands.command("push")
def push(
    version: VersionArgument,
    url: Annotated[str, typer.Option(help="Address of the server.")] = "http://127.0.0.1:8000",
    key: Annotated[str | None, typer.Option(envvar="POLYTONE_KEY", help="An admin key of that server.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a version to a server elsewhere, which checks and publishes it."""
    from .push import push_version

    answer = push_version(read_settings(home=home).paths(), version, url, key)
    tell({**answer, "state": "published"}, f"{answer['version']} is published at {url}", as_json)


@adapters_commands.command("audit")
def audit(
    target: Annotated[str | None, typer.Argument(help="A voice, version or key; all of them by default.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Newest entries to show.")] = 50,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who changed what, newest first."""
    entries = open_state(read_settings(home=home)).registry.audit(limit, target)
    if as_json:
        print(json.dumps({"entries": [{**vars(entry), "at": entry.at.isoformat()} for entry in entries]}))
        return
    table = Table("when", "who", "what", "of", "from", "to", box=None)
    for entry in entries:
        when = f"{entry.at:%Y-%m-%d %H:%M:%S}"
        table.add_row(when, entry.actor, entry.action, entry.target, brief(entry.before), brief(entry.after))
    Console(soft_wrap=True).print(table)


def in_words(rollout: "Rollout") -> str:
    parts = rollout.parts
    if len(parts) == 1:
        return parts[0].version
    total = sum(part.weight for part in parts)
    return ", ".join(f"{part.version} ({100 * part.weight / total:g} %)" for part in parts)


def brief(value: Any) -> str:
    """A change's before or after in a table."""
    if isinstance(value, dict) and "versions" in value:
        forced = [f"{one} failed {', '.join(gates)}" for one, gates in value.get("failed_gates", {}).items()]
        who = ", ".join(f"{part['version']} ({part['weight']})" for part in value["versions"]) or "nobody"
        return f"{who}, by force: {'; '.join(forced)}" if forced else who
    return "" if value is None else str(value.get("kind", "")) if isinstance(value, dict) else str(value)


def warn(known: dict[str, Any], as_json: bool) -> None:
    """Say what is known against the versions that answer now, and of which nothing is known."""
    if as_json:
        return
    for version, gates in known["failed_gates"].items():
        print(f"{version} did not pass its evaluation ({', '.join(gates)}).")
    for version in known["not_evaluated"]:
        print(f"{version} was never evaluated on this machine: polytone evaluate {version} --data HELD_OUT.jsonl")
