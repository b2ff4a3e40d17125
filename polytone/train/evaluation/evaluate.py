"""An evaluation on disk: its folder with figures, report, plots and replies, then the verdict that promotion reads."""

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polytone.contract.adapter import Manifest
from polytone.contract.errors import InputError
from polytone.contract.evaluation import EvaluatedOn, GateVerdict, write_verdict
from polytone.contract.files import folder_written_whole, unused_folder
from polytone.contract.home import Home
from polytone.contract.rows import Conversation, RowFile
from polytone.progress import Progress
from polytone.train.recipe import GatesSection

from .compare import BASE, PARENT, VOICE, Comparison, compare
from .gates import Judgement, judge
from .gates import as_json as held_as_json
from .plots import draw_plots
from .report import names_of, quantization_in_words, write_report
from .results import Results, as_json, measure_all

SCHEMA = "polytone.evaluation/1"


@dataclass(frozen=True)
class Evaluated:
    """The verdict, where everything lies, and evaluation.json's content."""

    verdict: GateVerdict
    folder: Path
    document: dict[str, Any]


def evaluate_version(
    home: Home,
    manifest: Manifest,
    file: RowFile[Conversation],
    gates: GatesSection,
    max_length: int,
    replies: int,
    out: Path | None,
    progress: Progress,
) -> Evaluated:
    """Compare a version, judge it, and write what was found, whole or not at all.

    Raises:
        InputError: `output_exists`, or as `compare`.
        CheckError: as `compare`.
        StorageError: `disk_full`, `disk_error`.
    """
    target = check_free(out) if out else unused_folder(home.evaluations / folder_name(manifest))
    began = time.monotonic()
    comparison = compare(home, manifest, file, max_length, replies, progress)
    progress.start("Drawing intervals, plots and the verdict", total=1)
    measured = measure_all(comparison, manifest)
    judgement = judge(measured, gates)
    verdict = give_verdict(manifest, file, measured, judgement, target)
    document = describe(manifest, verdict, judgement, gates, measured, time.monotonic() - began)
    with folder_written_whole(target) as folder:
        plots = draw_plots(measured, names_of(manifest, comparison), folder)
        (folder / "evaluation.json").write_text(json.dumps(document, indent=2) + "\n")
        (folder / "replies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reply_rows(comparison)))
        (folder / "report.md").write_text(write_report(manifest, verdict, judgement, comparison, measured, plots))
    write_verdict(home, verdict)
    progress.advance()
    progress.finish()
    return Evaluated(verdict, target, document)


def check_free(out: Path) -> Path:
    """Raises InputError `output_exists`; nothing that is there is written over."""
    if out.exists():
        raise InputError(
            f"--out: {out} is there already. Name a folder that is not, or remove it.",
            code="output_exists",
            param="out",
        )
    return out


def folder_name(manifest: Manifest) -> str:
    return f"{manifest.version}-{time.strftime('%Y%m%d-%H%M%S')}"


def give_verdict(
    manifest: Manifest, file: RowFile[Conversation], measured: Results, judgement: Judgement, target: Path
) -> GateVerdict:
    return GateVerdict(
        version=manifest.version,
        passed=judgement.passed,
        verdict=judgement.word,
        reasons=judgement.reasons,
        not_measured=judgement.not_measured,
        when=datetime.now(UTC).replace(microsecond=0),
        data=EvaluatedOn(path=Path(file.path).name, sha256=file.sha256, rows=len(file.rows), tokens=measured.tokens),
        folder=target.name,
    )


def describe(
    manifest: Manifest,
    verdict: GateVerdict,
    judgement: Judgement,
    gates: GatesSection,
    measured: Results,
    seconds: float,
) -> dict[str, Any]:
    """evaluation.json; losses stand at the top too, under the names that the manifest has for them."""
    losses = {name: round(samples["loss"].value, 6) for name, samples in measured.samples.items()}
    return {
        "schema": SCHEMA,
        "version": manifest.version,
        "base_loss": losses[BASE],
        "adapter_loss": losses[VOICE],
        "parent_loss": losses.get(PARENT),
        "tokens": measured.tokens,
        "improvement": round(1 - losses[VOICE] / losses[BASE], 4),
        "parent": manifest.parent,
        "verdict": verdict.model_dump(mode="json"),
        "gates": gates.model_dump(),
        "held": [held_as_json(held) for held in judgement.held],
        "quantization": quantization_in_words(measured),
        **as_json(measured),
        "replies": measured.replies,
        "max_reply_tokens": measured.new_tokens,
        "seconds": round(seconds, 1),
    }


def reply_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """replies.jsonl: each question with the reference answer and everyone's."""
    return [
        {
            "messages": question.prompt.messages,
            "reference": question.reference,
            "replies": {
                name: {"text": heard.answers[number].text, "finish_reason": heard.answers[number].finish_reason}
                for name, heard in comparison.heard.items()
            },
        }
        for number, question in enumerate(comparison.questions)
    ]
