"""The commands of `adapters`. Heavy libraries are imported when a command runs: --help is instant."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from polytone.contract.adapter import check_servable
from polytone.contract.base import load_base
from polytone.contract.errors import InputError
from polytone.contract.version_id import voice_of
from polytone.serve.settings import read_home, read_settings

from .options import DEFAULT_URL, ForceOption, HomeOption, JsonOption, UrlOption, VersionArgument, WaitOption
from .output import print_change, print_table
from .state import actor, describe_versions, open_state, open_store, read_here, resolve

if TYPE_CHECKING:
    from polytone.serve.adapters.rollout import Part, Rollout

adapters_commands = typer.Typer(
    help="Publish, promote and retire versions of voices. POLYTONE_ADAPTER_STORE names where servers get their files.",
    no_args_is_help=True,
)


@adapters_commands.command("list")
def list_adapters(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List versions with their shares and states.

    Share: of its voice's conversations. State: published or retired in the registry, or only on disk. On servers: the
    state on each running server, with the reason where it failed.
    """
    settings = read_settings(home=home)
    store = open_store(settings)
    rows = describe_versions(settings, open_state(settings))
    if as_json:
        print(json.dumps({"versions": rows, "store": str(store) if store is not None else None}))
        return
    table = Table("version", "share", "state", "on servers", box=None)
    for row in rows:
        states = ", ".join(f"{one['state']}{': ' + one['reason'] if one['reason'] else ''}" for one in row["replicas"])
        table.add_row(row["version"], f"{row['share']:.0%}" if row["share"] else "", row["wanted"], states or "-")
    if rows:
        print_table(table)
    else:
        print(f"No version yet in {settings.paths().root}. Train one: polytone train RECIPE")
    if store is not None:
        print(f"Servers fetch versions from {store} (POLYTONE_ADAPTER_STORE).")


@adapters_commands.command("show")
def show(version: VersionArgument, home: HomeOption = None) -> None:
    """Check a version's files and print its manifest.

    A version that is not in the home is fetched from the adapter store, if there is one.
    """
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
    """Check a version and have every server load it.

    It answers under its own id at once, and under its voice's name after `promote`. With POLYTONE_ADAPTER_STORE its
    files are written there first, where servers fetch them.

    Example: polytone adapters publish acme@3f2a91c0de12
    """
    from .wait import wait_until_ready

    settings = read_settings(home=home)
    store = open_store(settings)
    manifest = read_here(settings, store, version)
    check_servable(manifest, load_base(settings.paths(), settings.base), settings.max_lora_rank)
    if store is not None:
        store.put(settings.paths().adapter_folder(version), version)
    state = open_state(settings, create=True)
    state.registry.publish(version, actor())
    reached = wait_until_ready(state.replicas, version, wait)
    print_change({"version": version, "state": reached}, f"{version} is published.", as_json)


@adapters_commands.command("promote")
def promote(
    version: VersionArgument,
    force: ForceOption = False,
    home: HomeOption = None,
    wait: WaitOption = 60,
    as_json: JsonOption = False,
) -> None:
    """Let a version answer all of its voice's conversations.

    The version must be published. Servers switch once they have loaded and verified it;
    until then the one before answers.

    A version whose evaluation failed its gates is refused with every reason, unless you --force it.

    Example: polytone adapters promote acme@3f2a91c0de12
    """
    roll_out(version, None, force, home, wait, as_json)


@adapters_commands.command("canary")
def canary(
    version: VersionArgument,
    percent: Annotated[int, typer.Argument(min=1, max=99, help="Percentage of the conversations it answers.")],
    force: ForceOption = False,
    home: HomeOption = None,
    wait: WaitOption = 60,
    as_json: JsonOption = False,
) -> None:
    """Let a version answer a share of its voice's conversations.

    The version must be published. Each conversation stays with its version. The version that answers now keeps the
    rest, so a voice's first version is promoted instead. A version whose evaluation failed its gates is refused with
    every reason, unless you --force it.

    Example, for a tenth of the conversations: polytone adapters canary acme@3f2a91c0de12 10
    """
    roll_out(version, percent, force, home, wait, as_json)


def roll_out(version: str, percent: int | None, force: bool, home: Path | None, wait: float, as_json: bool) -> None:
    """Let `version` answer `percent` of its voice's conversations, or all of them, and wait for the servers."""
    settings = read_settings(home=home)
    state = open_state(settings)
    from polytone.serve.adapters.promotion_gates import Gates, evaluations_of

    from .wait import wait_until_routed

    voice = voice_of(version)
    before = state.registry.desired().rollouts.get(voice)
    gates = Gates(settings.paths(), force)
    generation = before.generation if before else None
    if percent is None:
        rollout = state.registry.promote(voice, version, actor(), generation, gates)
    else:
        parts = canary_parts(version, percent, before)
        rollout = state.registry.roll_out(voice, parts, actor(), generation, action="canary", gates=gates)
    evaluations = evaluations_of(settings.paths(), rollout.versions)
    reached = wait_until_routed(state.replicas, voice, rollout, wait)
    was = f" (was {in_words(before)})" if before and before.generation != rollout.generation else ""
    print_change(
        {
            "voice": voice,
            **rollout.as_json(),
            "before": before.as_json() if before else None,
            "state": reached,
            **evaluations,
        },
        f"{voice} is answered by {in_words(rollout)}{was}.",
        as_json,
    )
    if not as_json:
        if percent is not None:
            print("A conversation is recognized by the header x-conversation-id, else by `user`, else by its API key.")
        print_evaluation_warnings(evaluations)


def canary_parts(version: str, percent: int, before: "Rollout | None") -> "list[Part]":
    """The version with its share, and the one that answered before with the rest."""
    from polytone.serve.adapters.rollout import Part

    others = [part for part in before.parts if part.version != version] if before else []
    if not others:
        raise InputError(
            f"{voice_of(version)} has no other version to share its conversations with: a canary is for a voice's "
            f"second version on. Promote this one: polytone adapters promote {version}",
            code="rollout_invalid",
        )
    return [Part(others[0].version, 100 - percent), Part(version, percent)]


@adapters_commands.command("rollback")
def rollback(
    voice: Annotated[str, typer.Argument(help="The voice's name.")],
    home: HomeOption = None,
    wait: WaitOption = 60,
    as_json: JsonOption = False,
) -> None:
    """Go back to what answered for a voice before.

    Again goes back further. It takes a second or two: the version before is still loaded, or is loaded again.

    Example: polytone adapters rollback acme
    """
    from .wait import wait_until_routed

    state = open_state(read_settings(home=home))
    before = state.registry.desired().rollouts.get(voice)
    rollout = state.registry.roll_back(voice, actor(), before.generation if before else None)
    reached = wait_until_routed(state.replicas, voice, rollout, wait)
    print_change(
        {"voice": voice, **rollout.as_json(), "state": reached},
        f"{voice} is answered by {in_words(rollout)} again (was {in_words(before)}).",
        as_json,
    )
    if len(rollout.parts) > 1 and not as_json:
        print(f"This is a canary: they share its conversations. To go back further: polytone adapters rollback {voice}")


@adapters_commands.command("retire")
def retire(
    version: Annotated[str, typer.Argument(help="A version, or a voice's name to take the whole voice away.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a version from answering and free its memory.

    Answers that are running may finish. Its files stay, and publishing it again brings it back.
    """
    registry = open_state(read_settings(home=home)).registry
    versions = [version] if "@" in version else registry.remove_voice(version, actor())
    for one in versions:
        registry.retire(one, actor())
    are = "is" if len(versions) == 1 else "are"
    print_change({"versions": versions, "state": "retired"}, f"{', '.join(versions)} {are} retired.", as_json)


@adapters_commands.command("pack")
def pack(
    version: VersionArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
    home: HomeOption = None,
) -> None:
    """Write a version as a tar.gz, for an upload.

    POST /admin/adapters/NAME/versions takes it; `polytone adapters push` does both.
    """
    from polytone.serve.adapters.archive import pack_version

    target = output or Path(f"{version.replace('@', '-')}.tar.gz")
    pack_version(read_home(home), version, target)
    print(target)


@adapters_commands.command("push")
def push(
    version: VersionArgument,
    url: UrlOption = DEFAULT_URL,
    key: Annotated[str | None, typer.Option(envvar="POLYTONE_KEY", help="An admin key of that server.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a version to a server on another machine.

    The server checks it and publishes it, or answers with every reason it is refused for.

    Example: polytone adapters push acme@3f2a91c0de12 --url https://polytone.example
    """
    from .push import push_version

    answer = push_version(read_home(home), version, url, key)
    print_change({**answer, "state": "published"}, f"{answer['version']} is published at {url}.", as_json)


@adapters_commands.command("audit")
def audit(
    target: Annotated[str | None, typer.Argument(help="A voice, version or key; by default all of them.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Number of entries to show.")] = 50,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who changed what, newest first."""
    from polytone.serve.database.audit import read_audit

    settings = read_settings(home=home)
    entries = read_audit(open_state(settings).database, limit, target)
    if as_json:
        print(json.dumps({"entries": [entry.as_json() for entry in entries]}))
        return
    table = Table("when", "what", "of", "from", "to", "by", box=None)
    for entry in entries:
        when = f"{entry.at:%Y-%m-%d %H:%M:%S}"
        table.add_row(when, entry.action, entry.target, brief(entry.before), brief(entry.after), entry.actor)
    if entries:
        print_table(table)
    else:
        print(f"Nothing{f' of {target}' if target else ''} has been changed yet in {settings.paths().root}.")


def in_words(rollout: "Rollout | None") -> str:
    parts = rollout.parts if rollout else ()
    if len(parts) <= 1:
        return parts[0].version if parts else "nobody"
    total = sum(part.weight for part in parts)
    return ", ".join(f"{part.version} ({100 * part.weight / total:g} %)" for part in parts)


def brief(value: Any) -> str:
    """The state before or after a change, for a table."""
    if isinstance(value, dict) and "versions" in value:
        forced = [f"{one} failed {', '.join(gates)}" for one, gates in value.get("failed_gates", {}).items()]
        who = ", ".join(f"{part['version']} ({part['weight']})" for part in value["versions"]) or "nobody"
        return f"{who}, by force: {'; '.join(forced)}" if forced else who
    return "" if value is None else str(value.get("kind", "")) if isinstance(value, dict) else str(value)


def print_evaluation_warnings(evaluations: dict[str, Any]) -> None:
    """Name the versions that answer now and failed their evaluation, or have none."""
    for version, gates in evaluations["failed_gates"].items():
        print(f"{version} did not pass its evaluation ({', '.join(gates)}).")
    for version in evaluations["not_evaluated"]:
        print(f"{version} was never evaluated on this machine: polytone evaluate {version} --data HELD_OUT.jsonl")
