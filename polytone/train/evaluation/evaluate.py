"""An evaluation on disk: a folder with figures, report, plots and replies, and the verdict that promotion reads."""

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polytone.contract.errors import InputError
from polytone.contract.evaluation import EvaluatedOn, GateVerdict, write_verdict
from polytone.contract.files import folder_written_whole, unused_folder
from polytone.contract.home import Home
from polytone.contract.manifest import Manifest
from polytone.contract.rows import Conversation
from polytone.progress import Progress
from polytone.train.dataset.training_rows import RowFile
from polytone.train.recipe import GatesSection

from .compare import BASE, PARENT, VOICE, Comparison, Extent, compare
from .gates import Judgement, judge
from .plots import draw_plots
from .report import model_titles, quantization_cost, write_report
from .results import Results, as_json, measure_all

SCHEMA = "polytone.evaluation/1"


@dataclass(frozen=True)
class Evaluated:
    """The verdict, the folder of the evaluation, and the content of its evaluation.json."""

    verdict: GateVerdict
    folder: Path
    document: dict[str, Any]


def evaluate_version(
    home: Home,
    manifest: Manifest,
    file: RowFile[Conversation],
    gates: GatesSection,
    extent: Extent,
    out: Path | None,
    progress: Progress,
) -> Evaluated:
    """Compare a version with its base and parent, judge it, and write the results, whole or not at all.

    Raises:
        InputError: `output_exists`, or as `compare`.
        CheckError: as `compare`.
        StorageError: `disk_full`, `disk_error`.
    """
    target = check_unused(out) if out else unused_folder(home.evaluations / folder_name(manifest))
    began = time.monotonic()
    comparison = compare(home, manifest, file, extent, progress)
    progress.start("Computing intervals, plots and the verdict", total=1)
    results = measure_all(comparison, manifest)
    judgement = judge(results, gates)
    verdict = verdict_of(manifest, file, results, judgement, target)
    document = describe(manifest, verdict, judgement, gates, results, time.monotonic() - began)
    with folder_written_whole(target) as folder:
        plots = draw_plots(results, model_titles(manifest, comparison), folder)
        (folder / "evaluation.json").write_text(json.dumps(document, indent=2) + "\n")
        (folder / "replies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reply_rows(comparison)))
        (folder / "report.md").write_text(write_report(manifest, verdict, judgement, comparison, results, plots))
    write_verdict(home, verdict)
    progress.advance()
    progress.finish()
    return Evaluated(verdict, target, document)


def check_unused(out: Path) -> Path:
    """Raises InputError `output_exists`; no existing folder is overwritten."""
    if out.exists():
        raise InputError(
            f"--out: {out} exists already. Name another folder, or remove it.", code="output_exists", param="out"
        )
    return out


def folder_name(manifest: Manifest) -> str:
    return f"{manifest.version}-{time.strftime('%Y%m%d-%H%M%S')}"


def verdict_of(
    manifest: Manifest, file: RowFile[Conversation], results: Results, judgement: Judgement, target: Path
) -> GateVerdict:
    return GateVerdict(
        version=manifest.version,
        passed=judgement.passed,
        verdict=judgement.word,
        reasons=judgement.reasons,
        not_measured=judgement.not_measured,
        when=datetime.now(UTC).replace(microsecond=0),
        data=EvaluatedOn(path=Path(file.path).name, sha256=file.sha256, rows=len(file.rows), tokens=results.tokens),
        folder=target.name,
    )


def describe(
    manifest: Manifest,
    verdict: GateVerdict,
    judgement: Judgement,
    gates: GatesSection,
    results: Results,
    seconds: float,
) -> dict[str, Any]:
    """The content of evaluation.json; losses are at the top too, under the names that the manifest has for them."""
    losses = {model: round(samples["loss"].value, 6) for model, samples in results.samples.items()}
    return {
        "schema": SCHEMA,
        "version": manifest.version,
        "base_loss": losses[BASE],
        "adapter_loss": losses[VOICE],
        "parent_loss": losses.get(PARENT),
        "tokens": results.tokens,
        "improvement": round(1 - losses[VOICE] / losses[BASE], 4),
        "parent": manifest.parent,
        "verdict": verdict.model_dump(mode="json"),
        "gates": gates.model_dump(),
        "held": [result.as_json() for result in judgement.results],
        "quantization": quantization_cost(results),
        **as_json(results),
        "replies": results.replies,
        "max_reply_tokens": results.new_tokens,
        "seconds": round(seconds, 1),
    }


def reply_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The rows of replies.jsonl: each question with the reference reply and every model's."""
    return [
        {
            "messages": question.prompt.messages,
            "reference": question.reference,
            "replies": {
                model: {"text": outputs.replies[number].text, "finish_reason": outputs.replies[number].finish_reason}
                for model, outputs in comparison.outputs.items()
            },
        }
        for number, question in enumerate(comparison.questions)
    ]
