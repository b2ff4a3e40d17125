"""Exports of feedback as training rows, with a manifest of their origin and of what was left out.

Corrections become SFT rows and, paired with the reply they correct, DPO rows; thumbs become KTO rows; votes become DPO
rows. A conversation, and every row that begins with the same question, falls into one split only.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from polytone.contract.export import ExportFormat, ExportManifest, ExportSplit, export_manifest_path
from polytone.measure.signals import text_of
from polytone.serve.database.session import Database, now, reading
from polytone.serve.database.tables import AnswerRow, FeedbackRow, ReviewRow

from .export_rows import Json, Material, dpo_rows, kto_rows, sft_rows
from .feedback import active_feedback
from .names import require_name

VALUES_AT_ONCE = 5000
HELD_OUT_OF = 10  # one in so many first questions is held out
ROWS_OF = {ExportFormat.SFT: sft_rows, ExportFormat.KTO: kto_rows, ExportFormat.DPO: dpo_rows}


@dataclass(frozen=True)
class Export:
    """Training rows as JSON lines, and their manifest."""

    rows: bytes
    manifest: ExportManifest


def export(
    database: Database,
    format: ExportFormat,
    adapter: str,
    split: ExportSplit = ExportSplit.TRAIN,
    until: datetime | None = None,
    annotator_kinds: frozenset[str] = frozenset({"human"}),
) -> Export:
    """Export everything that was in force at `until`, by default now. The same arguments give the same rows. Blocks.

    Args:
        annotator_kinds: whose feedback counts: human, code, llm.

    Raises:
        NotFoundError: `voice_not_found`.
    """
    until = until or now()
    with reading(database) as session:
        require_name(session, adapter, "adapter")
        material = gather(session, adapter, until, annotator_kinds)
    rows = list(rows_of_split(ROWS_OF[format](material), material, split))
    lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows).encode()
    manifest = ExportManifest(
        format=format,
        split=split,
        sha256=hashlib.sha256(lines).hexdigest(),
        rows=len(rows),
        adapter=adapter,
        completions=sorted({completion for row in rows for completion in completions_of(row)}),
        versions=sorted({row["version"] for row in rows}),
        left_out=dict(sorted(material.left_out.items())),
        filters={"until": until.isoformat(), "annotator_kinds": sorted(annotator_kinds)},
        created=until,
    )
    return Export(lines, manifest)


def write_export(exported: Export, folder: Path, name: str) -> Path:
    """Write NAME.jsonl and NAME.manifest.json into `folder`; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_bytes(exported.rows)
    export_manifest_path(path).write_text(exported.manifest.model_dump_json(by_alias=True, indent=1) + "\n")
    return path


def gather(session: Session, adapter: str, until: datetime, annotator_kinds: frozenset[str]) -> Material:
    of_voice = (FeedbackRow.voice == adapter, FeedbackRow.annotator_kind.in_(annotator_kinds))
    feedback = active_feedback(session, until, *of_voice)
    rated = {row.target_id for row in feedback} | {row.other_id for row in feedback if row.other_id}
    decided = session.scalars(select(ReviewRow).where(ReviewRow.state != "open", ReviewRow.decided_at <= until)).all()
    reviewed = {row.completion_id for row in decided if row.voice == adapter}
    reviews = {row.completion_id: row.state for row in decided if row.completion_id in reviewed | rated}
    answers = {row.id: row for row in in_chunks(session, AnswerRow.id, rated | set(reviews))}
    conversations = {row.conversation for row in answers.values() if row.conversation}
    rows = in_chunks(session, AnswerRow.conversation, conversations)
    first_questions = {str(row.conversation): first_question(row.prompt) for row in sorted(rows, key=newest_first)}
    return Material(feedback, answers, reviews, first_questions, reviewed)


def in_chunks(session: Session, column: Any, values: set[str]) -> Iterator[AnswerRow]:
    """Select answers by `column`, a part of the values at a time: databases limit the parameters of a query."""
    ordered = sorted(values)
    for start in range(0, len(ordered), VALUES_AT_ONCE):
        yield from session.scalars(select(AnswerRow).where(column.in_(ordered[start : start + VALUES_AT_ONCE])))


def newest_first(row: AnswerRow) -> float:
    return -row.at.timestamp()


def completions_of(row: Json) -> list[str]:
    return [row[key] for key in ("completion_id", "rejected_completion_id") if key in row]


def rows_of_split(rows: Iterator[Json], material: Material, split: ExportSplit) -> Iterator[Json]:
    """The rows of one split. A prompt that would fall into both is held out."""
    placed = [(row, split_of(material.answers[row["completion_id"]], material)) for row in rows]
    held_out = {prompt_of(row) for row, place in placed if place is ExportSplit.HELD_OUT}
    for row, place in placed:
        if place is ExportSplit.TRAIN and prompt_of(row) in held_out:
            material.left_out["the same prompt is held out"] += 1
        elif place is split:
            yield row
        else:
            material.left_out[f"in the split {place}"] += 1


def split_of(answer: AnswerRow, material: Material) -> ExportSplit:
    """Decided by the first question of its conversation, so that conversations that begin alike stay together."""
    question = material.first_questions.get(answer.conversation or "") or first_question(answer.prompt)
    number = int(hashlib.sha256(" ".join(question.lower().split()).encode()).hexdigest()[:8], 16)
    return ExportSplit.HELD_OUT if number % HELD_OUT_OF == 0 else ExportSplit.TRAIN


def first_question(prompt: Any) -> str:
    if not isinstance(prompt, list):
        return str(prompt or "")
    return next((text_of(one) for one in prompt if isinstance(one, dict) and one.get("role") == "user"), "")


def prompt_of(row: Json) -> str:
    return json.dumps(row["prompt"] if "prompt" in row else row["messages"][:-1], sort_keys=True)
