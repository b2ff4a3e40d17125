"""polytone evaluate. Heavy libraries are imported when it runs, so that --help is instant."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from polytone.contract.adapter import read_version
from polytone.contract.rows import read_conversations
from polytone.serve.settings import read_home
from polytone.train.libraries import quiet_libraries

from .options import HomeOption, JsonOption
from .state import newest_version

if TYPE_CHECKING:
    from polytone.train.evaluation.evaluate import Evaluated


def evaluate(
    version: Annotated[str, typer.Argument(help="name@digest12, or a voice's name for its newest version on disk.")],
    data: Annotated[Path, typer.Option(help="JSON-lines file of conversations the voice was not trained on.")],
    replies: Annotated[int, typer.Option(min=2, help="Conversations of which a turn is answered, at most.")] = 64,
    gates: Annotated[
        Path | None, typer.Option(help="Recipe whose gates count, instead of those the version was trained with.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write [evaluations/VERSION-TIME in the home folder].")
    ] = None,
    max_length: Annotated[int, typer.Option(help="Longest row in tokens; longer ones are refused.")] = 2048,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a version with its base, before and after quantization, and with its parent; judge it by its gates.

    Measures losses, tone, coherence, topic, bias and what quantization cost, each with a 95 % interval. Writes a folder
    with report.md, evaluation.json and plots, and the verdict that `polytone adapters promote` goes by. Exit code 1 if
    the version does not pass. docs/evaluation.md says what each figure means.
    """
    from polytone.train.recipe import read_recipe

    where = read_home(home)
    manifest = read_version(where, newest_version(where, version))
    file = read_conversations(data)
    wanted = read_recipe(gates).gates if gates else None
    quiet_libraries()
    from polytone.progress import Progress
    from polytone.train.evaluation.evaluate import evaluate_version
    from polytone.train.evaluation.gates import gates_of

    with Progress(Console(stderr=True)) as progress:
        found = evaluate_version(
            where, manifest, file, wanted or gates_of(manifest), max_length, replies, out, progress
        )
    print(json.dumps({**found.document, "folder": str(found.folder)}) if as_json else in_words(found))
    if not found.verdict.passed:
        raise typer.Exit(1)


def in_words(found: "Evaluated") -> str:
    document, verdict = found.document, found.verdict
    parent = f", its parent {document['parent_loss']:.3f}" if document["parent_loss"] is not None else ""
    lines = [
        f"{verdict.version}: {document['adapter_loss']:.3f} nats per assistant token, base {document['base_loss']:.3f} "
        f"({document['improvement']:.1%} lower, {document['tokens']} tokens){parent}.",
        document["quantization"],
        f"Verdict: {verdict.verdict}." + (" It passed its gates." if verdict.passed else " It did not pass its gates:"),
        *(f"- {reason.message}" for reason in verdict.reasons),
        *(f"- not judged by {gate}: {why}" for gate, why in verdict.not_measured.items()),
        f"Report: {found.folder / 'report.md'}",
    ]
    return "\n".join(lines)
