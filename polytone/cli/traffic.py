"""Commands about answers: `polytone drift`, `feedback` and `traffic`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from polytone.contract.errors import InputError
from polytone.contract.export import ExportFormat, ExportManifest, ExportSplit
from polytone.serve.settings import read_settings

from .exit_codes import ExitCode
from .options import HomeOption, JsonOption
from .state import actor, open_database

if TYPE_CHECKING:
    from polytone.serve.database.session import Database

COMMENT_LENGTH = 80

feedback_commands = typer.Typer(help="List feedback, or export it as training rows.", no_args_is_help=True)
traffic_commands = typer.Typer(help="Delete recorded answers.", no_args_is_help=True)


def drift(
    name: Annotated[str | None, typer.Argument(help="A voice, or a version (name@digest12); by default all.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Report which voices have changed: what, since when, how surely, and in which conversations.

    Exit code 1 while there is an active alarm."""
    from polytone.serve.drift.report import report

    versions = report(open_data(home), name)
    if as_json:
        print(json.dumps({"versions": versions}))
    else:
        show_drift(versions)
    if any(one["state"] == "drift" for one in versions):
        raise typer.Exit(ExitCode.FAILED)


def show_drift(versions: list[dict[str, Any]]) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if not versions:
        console.print("Nothing was observed yet. A conversation is observed once it has been quiet for a while.")
    for one in versions:
        expected = one["expected_chance_alarms"]
        console.print(f"{one['version']}: {one['state']} ({expected:.2f} chance alarms expected so far)", style="bold")
        for signal in one["signals"]:
            console.print(f"  {signal['signal']}: {signal['words']}")
            for completion in (signal["alarm"] or {}).get("examples", ()):
                console.print(f"    example: {completion}")


@feedback_commands.command("list")
def list_feedback(
    adapter: Annotated[str | None, typer.Option(help="Only this voice's.")] = None,
    limit: Annotated[int, typer.Option(help="Number of the latest to show.")] = 50,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List feedback, the latest last: time, version, annotator, content and the ids of its answers."""
    from polytone.serve.traffic.feedback import FeedbackStore
    from polytone.serve.traffic.feedback import as_json as row_json

    rows = [row_json(row) for row in FeedbackStore(open_data(home)).latest(adapter, limit)]
    if as_json:
        print(json.dumps({"feedback": rows}))
        return
    for row in rows:
        print(feedback_line(row))
    if not rows:
        print("There is no feedback yet. Clients send it to POST /v1/feedback.")


def feedback_line(row: dict[str, Any]) -> str:
    """One line with whole ids, so that they can be copied and filtered."""
    pair = row.get("pair") or {}
    target = row.get("completion_id") or row.get("conversation_id") or f"{pair.get('a')} {pair.get('b')}"
    parts = [str(part) for part in (row["key"], row["value"], row["text"]) if part is not None]
    content = " ".join(" ".join(parts).split())[:COMMENT_LENGTH]
    return f"{row['at'][:19]}  {row['version']}  {target}  {row['annotator']['id']}: {content}"


@feedback_commands.command("export")
def export_feedback(
    adapter: Annotated[str, typer.Option(help="The voice whose answers to export.")],
    format: Annotated[ExportFormat, typer.Option(help="TRL's kind of rows.")] = ExportFormat.SFT,
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path(),
    annotators: Annotated[
        str, typer.Option(help="Whose feedback counts: human, code, llm, separated by commas.")
    ] = "human",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write rows to train on and rows to hold out, each with a manifest that leads back to the answers.

    `polytone train` reads the files as they are: name them in a recipe's data section. A split without rows gets no
    file. Exit code 1 if there are no rows at all."""
    from polytone.serve.database.session import now
    from polytone.serve.traffic.export import export, write_export

    database, until = open_data(home), now()
    kinds = frozenset(annotators.split(","))
    exports = {split: export(database, format, adapter, split, until, kinds) for split in ExportSplit}
    files = {
        split: write_export(one, out, f"{adapter}-{format}-{split}") if one.manifest.rows else None
        for split, one in exports.items()
    }
    if as_json:
        manifests = [one.manifest.model_dump(mode="json", by_alias=True) for one in exports.values()]
        print(json.dumps({"files": [str(file) for file in files.values() if file], "manifests": manifests}))
    else:
        for split, one in exports.items():
            show_export(split, files[split], one.manifest)
    if not any(files.values()):
        raise typer.Exit(1)


def show_export(split: ExportSplit, file: Path | None, manifest: ExportManifest) -> None:
    if file is None:
        print(f"{split}: no rows, so no file was written; leave data.{split} out of the recipe.")
    else:
        answers = counted(len(manifest.completions), "answer")
        print(f"{file}: {counted(manifest.rows, 'row')} from {answers}")
    if split is ExportSplit.TRAIN:
        for reason, count in manifest.left_out.items():
            print(f"  {counted(count, 'row')} left out: {reason}")


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@traffic_commands.command("find")
def find(
    text: Annotated[str, typer.Option(help="What a user said or a voice replied, whole. - reads it from the input.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the answers with a text, whether the text itself was stored or only its hash.

    Exit code 1 if there are none."""
    from polytone.serve.traffic.forget import answer_json, find_text

    answers = [answer_json(row) for row in find_text(open_data(home), read_text(text))]
    if as_json:
        print(json.dumps({"answers": answers}))
    else:
        for one in answers:
            print(f"{one['at'][:19]}  {one['version']}  {one['completion_id']}  {one['conversation'] or ''}".rstrip())
        if not answers:
            print("No answer with this text is on record.")
    if not answers:
        raise typer.Exit(1)


@traffic_commands.command("forget")
def forget(
    conversation: Annotated[str | None, typer.Argument(help="Its id, as sent in x-conversation-id or user.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Instead: the conversations in which this text was said. - reads the input.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete every answer of a conversation, the feedback on it, and what a tester kept of it."""
    from polytone.serve.traffic.forget import forget_conversation, forget_text

    database = open_data(home)
    if conversation is not None and text is None:
        count = forget_conversation(database, conversation, actor())
    elif text is not None and conversation is None:
        count = forget_text(database, read_text(text), actor())
    else:
        raise InputError("Name a conversation or give --text, one of the two.", code="invalid_request")
    print(json.dumps({"deleted": count}) if as_json else f"{counted(count, 'answer')} deleted.")


def read_text(option: str) -> str:
    """The text of an option; from the standard input, a text does not stay in the shell's history."""
    return sys.stdin.read() if option == "-" else option


def open_data(home: Path | None) -> "Database":
    return open_database(read_settings(home=home))
