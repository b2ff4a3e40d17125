"""polytone drift, feedback and traffic: what was said of answers, and what is made of it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from polytone.contract.errors import InputError
from polytone.serve.settings import read_settings

from .exit_codes import ExitCode
from .options import HomeOption, JsonOption
from .state import actor, open_database

if TYPE_CHECKING:
    from polytone.serve.database.session import Database

FORMATS = ("sft", "kto", "dpo")

feedback_commands = typer.Typer(help="List feedback and export it as rows to train on.", no_args_is_help=True)
traffic_commands = typer.Typer(help="Forget what was recorded.", no_args_is_help=True)


def drift(
    version: Annotated[str | None, typer.Argument(help="name@digest12; all versions by default.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether voices have changed: what, since when, how sure, and which conversations show it.

    Exit code 1 while an alarm stands."""
    from polytone.serve.drift.report import report

    versions = report(open_data(home), version)
    if as_json:
        print(json.dumps({"versions": versions}))
    else:
        show_drift(versions)
    if any(one["state"] == "drift" for one in versions):
        raise typer.Exit(ExitCode.FAILED)


def show_drift(versions: list[dict[str, Any]]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    if not versions:
        console.print("Nothing was observed yet. A conversation counts once it has been quiet for a while.")
    for one in versions:
        expected = one["expected_chance_alarms"]
        console.print(f"{one['version']}: {one['state']} ({expected:.2f} chance alarms expected so far)", style="bold")
        for signal in one["signals"]:
            console.print(f"  {signal['signal']}: {signal['words']}")
            for completion in (signal["alarm"] or {}).get("examples", ()):
                console.print(f"    example: {completion}")


@feedback_commands.command("list")
def list_feedback(
    adapter: Annotated[str | None, typer.Option(help="Only of this voice.")] = None,
    limit: Annotated[int, typer.Option(help="The last so many.")] = 50,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what was said of answers, the newest last."""
    from polytone.serve.traffic.feedback import FeedbackStore
    from polytone.serve.traffic.feedback import as_json as shown

    rows = [shown(row) for row in FeedbackStore(open_data(home)).latest(adapter, limit)]
    if as_json:
        print(json.dumps({"feedback": rows}))
        return
    table = Table("at", "version", "of", "said", "by", box=None)
    for row in rows:
        of = row.get("completion_id") or row.get("conversation_id") or f"{row['pair']['a']} / {row['pair']['b']}"
        said = " ".join(str(part) for part in (row["key"], row["value"], row["text"]) if part is not None)
        table.add_row(row["at"][:19], row["version"], of, said[:80], row["annotator"]["id"])
    Console(soft_wrap=True).print(table if rows else "Nothing was said yet. Send it to POST /v1/feedback.")


@feedback_commands.command("export")
def export_feedback(
    adapter: Annotated[str, typer.Option(help="The voice whose answers to take.")],
    kind: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}: TRL's kinds of rows.")] = "sft",
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path(),
    annotators: Annotated[str, typer.Option(help="Kinds to listen to: human, code, llm, with commas.")] = "human",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write rows to train on and to hold out, each with a manifest that leads back to the answers.

    `polytone train` takes the files as they are: name them in a recipe's data section."""
    if kind not in FORMATS:
        raise InputError(f"--format: {kind!r} is none of {', '.join(FORMATS)}.", code="invalid_request", param="format")
    from polytone.serve.database.session import now
    from polytone.serve.traffic.export import Format, Split, export, write_export

    database, until = open_data(home), now()
    kinds = frozenset(annotators.split(","))
    made = [export(database, Format(kind), adapter, split, until, kinds) for split in Split]
    files = [write_export(one, out, f"{adapter}-{kind}-{one.manifest.split}") for one in made]
    if as_json:
        written = [one.manifest.model_dump(mode="json", by_alias=True) for one in made]
        print(json.dumps({"files": [str(file) for file in files], "manifests": written}))
        return
    for file, one in zip(files, made, strict=True):
        print(f"{file}: {one.manifest.rows} rows from {len(one.manifest.completions)} answers")
    for reason, count in made[0].manifest.left_out.items():
        print(f"  left out of the first: {count} ({reason})")


@traffic_commands.command("forget")
def forget(
    conversation: Annotated[str, typer.Argument(help="Its id, as `x-conversation-id` or `user` had it.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete every answer of a conversation, what was said of it, and what a tester kept of it."""
    from polytone.serve.metrics import Metrics
    from polytone.serve.traffic.capture import Policies
    from polytone.serve.traffic.recorder import TrafficRecorder

    gone = TrafficRecorder(open_data(home), Metrics(), Policies()).forget(conversation, actor())
    print(json.dumps({"deleted": gone}) if as_json else f"{gone} answers are deleted.")


def open_data(home: Path | None) -> "Database":
    return open_database(read_settings(home=home))
