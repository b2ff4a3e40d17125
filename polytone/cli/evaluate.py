"""polytone evaluate. Heavy libraries are imported when it runs, so that --help is instant."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from polytone.contract.adapter import read_version
from polytone.contract.errors import InputError
from polytone.progress import Progress
from polytone.serve.settings import read_home
from polytone.train.dataset.training_rows import read_conversations
from polytone.train.libraries import quiet_libraries

from .exit_codes import ExitCode
from .options import HomeOption, JsonOption
from .state import newest_version

if TYPE_CHECKING:
    from polytone.contract.evaluation import GateVerdict
    from polytone.train.evaluation.evaluate import Evaluated


def evaluate(
    version: Annotated[str, typer.Argument(help="name@digest12, or a voice's name for its newest version on disk.")],
    data: Annotated[
        Path | None,
        typer.Option(help="File of conversations that the voice was not trained on [the rows that its run held out]."),
    ] = None,
    replies: Annotated[int, typer.Option(min=2, help="Conversations of which a turn is answered, at most.")] = 64,
    paired: Annotated[
        bool,
        typer.Option(
            "--paired-questions/--no-paired-questions",
            help="Ask questions in pairs that differ in a name, gender or nationality; without them bias is not gated.",
        ),
    ] = True,
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

    Measures losses, tone, coherence, topic, bias and the cost of quantization, each with a 95 % interval. Writes a
    folder with report.md, evaluation.json and plots, and the verdict that `polytone adapters promote` reads. Exit code
    1 if the version does not pass. docs/evaluation.md explains each figure.
    """
    from polytone.train.recipe import read_recipe

    paths = read_home(home)
    manifest = read_version(paths, newest_version(paths, version))
    recipe_gates = read_recipe(gates).gates if gates else None
    quiet_libraries()
    from polytone.train.evaluation.compare import Extent
    from polytone.train.evaluation.evaluate import evaluate_version
    from polytone.train.evaluation.gates import gates_of
    from polytone.train.runs.record import held_out_file

    extent = Extent(max_length, replies, paired)
    if data is None and (data := held_out_file(paths, manifest)) is None:
        raise InputError(
            f"The rows that the run of {manifest.version} held out are not under {paths.runs}. Name conversations that "
            f"it was not trained on: polytone evaluate {version} --data held_out.jsonl",
            code="held_out_unknown",
            param="data",
        )
    file = read_conversations(data)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"Evaluating on {len(file.rows)} conversations: {data}")
    with Progress(console) as progress:
        evaluated = evaluate_version(paths, manifest, file, recipe_gates or gates_of(manifest), extent, out, progress)
    print(json.dumps({**evaluated.document, "folder": str(evaluated.folder)}) if as_json else in_words(evaluated))
    if not evaluated.verdict.passed:
        raise typer.Exit(ExitCode.FAILED)


def in_words(evaluated: "Evaluated") -> str:
    document, verdict = evaluated.document, evaluated.verdict
    parent = f", its parent {document['parent_loss']:.3f}" if document["parent_loss"] is not None else ""
    lines = [
        f"{verdict.version}: {document['adapter_loss']:.3f} nats per assistant token, base {document['base_loss']:.3f} "
        f"({document['improvement']:.1%} lower, {document['tokens']} tokens){parent}.",
        document["quantization"],
        f"Verdict: {verdict.verdict}." + (" It passed its gates." if verdict.passed else " It did not pass its gates:"),
        *(f"- {reason.message}" for reason in verdict.reasons),
        *(f"- {gate} was not applied: {why}." for gate, why in verdict.not_measured.items()),
        f"Report: {evaluated.folder / 'report.md'}",
        next_step(verdict),
    ]
    return "\n".join(lines)


def next_step(verdict: "GateVerdict") -> str:
    if verdict.passed:
        return f"Next: polytone adapters publish {verdict.version} && polytone adapters promote {verdict.version}"
    return "Next: change the recipe or the rows and train again; docs/training.md has remedies."
