"""Feedback and the answers it is about -> rows to train on, with a manifest of what they are and what was left out.

Corrections become SFT rows and, with the answer they correct, DPO pairs; thumbs become KTO verdicts; votes become DPO
pairs. A conversation, and every row that begins with the same question, lies on one side of the evaluation split.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from polytone.contract.export import ExportManifest, export_manifest_path
from polytone.contract.rows import Conversation
from polytone.measure.signals import text_of
from polytone.serve.database.session import Database, now, reading
from polytone.serve.database.tables import AnswerRow, FeedbackRow, ReviewRow

from .feedback import active_feedback

VALUES_AT_ONCE = 5000
HELD_OUT_OF = 10  # one first question in so many is held out
Json = dict[str, Any]


class Format(StrEnum):
    """TRL's kinds of rows."""

    SFT = "sft"
    KTO = "kto"
    DPO = "dpo"


class Split(StrEnum):
    TRAIN = "train"
    HELD_OUT = "held_out"


@dataclass(frozen=True)
class Export:
    """JSON lines to train on and what is said of them. `read_conversations` and its siblings take the rows."""

    rows: bytes
    manifest: ExportManifest


@dataclass
class Material:
    """Standing feedback with the answers it is about, and the reviews of those."""

    feedback: Sequence[FeedbackRow]
    answers: dict[str, AnswerRow]
    reviews: dict[str, str]
    firsts: dict[str, str]
    mine: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)


class LeftOutError(Exception):
    """A row that is not to be trained on; the argument says why."""


def export(
    database: Database,
    kind: Format,
    adapter: str,
    split: Split = Split.TRAIN,
    until: datetime | None = None,
    kinds: frozenset[str] = frozenset({"human"}),
) -> Export:
    """Everything that holds at `until` (now by default); the same arguments give the same rows. Blocks.

    Args:
        kinds: the kinds of annotators that are listened to: human, code, llm.
    """
    until = until or now()
    with reading(database) as session:
        material = gather(session, adapter, until, kinds)
    make = {Format.SFT: sft_rows, Format.KTO: kto_rows, Format.DPO: dpo_rows}[kind]
    rows = list(one_side(make(material), material, split))
    lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows).encode()
    manifest = ExportManifest(
        format=kind.value,
        split=split.value,
        sha256=hashlib.sha256(lines).hexdigest(),
        rows=len(rows),
        adapter=adapter,
        completions=sorted({completion for row in rows for completion in completions_of(row)}),
        left_out=dict(sorted(material.left_out.items())),
        filters={"until": until.isoformat(), "annotator_kinds": sorted(kinds)},
        created=until,
    )
    return Export(lines, manifest)


def write_export(made: Export, folder: Path, name: str) -> Path:
    """NAME.jsonl and NAME.manifest.json in `folder`; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / f"{name}.jsonl"
    rows.write_bytes(made.rows)
    export_manifest_path(rows).write_text(made.manifest.model_dump_json(by_alias=True, indent=1) + "\n")
    return rows


def gather(session: Session, adapter: str, until: datetime, kinds: frozenset[str]) -> Material:
    feedback = active_feedback(session, until, FeedbackRow.voice == adapter, FeedbackRow.annotator_kind.in_(kinds))
    decided = session.scalars(select(ReviewRow).where(ReviewRow.state != "open", ReviewRow.decided_at <= until))
    everyones = {row.completion_id: (row.voice, row.state) for row in decided}
    wanted = {row.target_id for row in feedback} | {row.other_id for row in feedback if row.other_id}
    reviews = {one: state for one, (of, state) in everyones.items() if of == adapter or one in wanted}
    answers = {row.id: row for row in in_chunks(session, AnswerRow.id, wanted | set(reviews))}
    conversations = {row.conversation for row in answers.values() if row.conversation}
    rows = in_chunks(session, AnswerRow.conversation, conversations)
    firsts = {str(row.conversation): first_question(row.prompt) for row in sorted(rows, key=newest_first)}
    mine = {one for one, (of, _) in everyones.items() if of == adapter}
    return Material(feedback, answers, reviews, firsts, mine)


def in_chunks(session: Session, column: Any, values: set[str]) -> Iterator[AnswerRow]:
    """Answers by `column`; a database takes only so many values in a query."""
    ordered = sorted(values)
    for start in range(0, len(ordered), VALUES_AT_ONCE):
        yield from session.scalars(select(AnswerRow).where(column.in_(ordered[start : start + VALUES_AT_ONCE])))


def newest_first(row: AnswerRow) -> float:
    return -row.at.timestamp()


def sft_rows(material: Material) -> Iterator[Json]:
    """Corrections, the last one of each answer, and answers that a reviewer accepted."""
    corrections = {row.target_id: row for row in material.feedback if row.key == "correction"}
    material.left_out["another correction took its place"] += sum(
        row.key == "correction" and corrections[row.target_id] is not row for row in material.feedback
    )
    for correction in corrections.values():
        yield from trying(material, partial(corrected_row, material, correction))
    for completion, state in material.reviews.items():
        if state == "accepted" and completion in material.mine and completion not in corrections:
            yield from trying(material, partial(accepted_row, material, completion))


def corrected_row(material: Material, given: FeedbackRow) -> Json:
    answer = usable(material, given.target_id)
    messages = conversation([*answer.prompt, {"role": "assistant", "content": given.text}])
    return {**lineage(answer, "correction", given.id), "messages": messages}


def accepted_row(material: Material, completion: str) -> Json:
    answer = usable(material, completion)
    return {**lineage(answer, "accepted", None), "messages": conversation([*answer.prompt, spoken(answer)])}


def kto_rows(material: Material) -> Iterator[Json]:
    """Thumbs; where people disagree, what the reviewer said."""
    thumbs: dict[str, list[FeedbackRow]] = {}
    for row in material.feedback:
        if row.key == "thumb" and row.target == "completion":
            thumbs.setdefault(row.target_id, []).append(row)
    for completion, given in thumbs.items():
        yield from trying(material, partial(kto_row, material, completion, given))


def kto_row(material: Material, completion: str, given: list[FeedbackRow]) -> Json:
    answer = usable(material, completion)
    labels = {row.value == "up" for row in given}
    if material.reviews.get(completion) == "accepted":
        labels = {True}
    if len(labels) > 1:
        raise LeftOutError("thumbs disagree")
    reply = spoken(answer)
    conversation([*answer.prompt, reply])
    return {
        **lineage(answer, "thumb", given[-1].id),
        "prompt": answer.prompt,
        "completion": [reply],
        "label": labels.pop(),
    }


def dpo_rows(material: Material) -> Iterator[Json]:
    """A correction against what it corrects, and the winner of a vote against the loser."""
    for row in material.feedback:
        if row.key == "correction":
            yield from trying(material, partial(corrected_pair, material, row))
        elif row.key == "preference":
            yield from trying(material, partial(voted_pair, material, row))


def corrected_pair(material: Material, given: FeedbackRow) -> Json:
    answer = usable(material, given.target_id)
    return pair(answer, {"role": "assistant", "content": given.text}, spoken(answer), "correction", given.id)


def voted_pair(material: Material, given: FeedbackRow) -> Json:
    a, b = usable(material, given.target_id), usable(material, given.other_id or "")
    if given.value["choice"] not in ("a", "b"):
        raise LeftOutError("a vote without a winner")
    if a.prompt != b.prompt:
        raise LeftOutError("a vote between answers to different prompts")
    winner, loser = (a, b) if given.value["choice"] == "a" else (b, a)
    return {**pair(winner, spoken(winner), spoken(loser), "vote", given.id), "rejected_completion_id": loser.id}


def pair(answer: AnswerRow, chosen: Json, rejected: Json, source: str, feedback: str) -> Json:
    if chosen["content"] == rejected["content"]:
        raise LeftOutError("both texts are the same")
    for reply in (chosen, rejected):
        conversation([*answer.prompt, reply])
    return {**lineage(answer, source, feedback), "prompt": answer.prompt, "chosen": [chosen], "rejected": [rejected]}


def trying(material: Material, make: Callable[[], Json]) -> Iterator[Json]:
    """The row, or a line in the count of what was left out."""
    try:
        yield make()
    except LeftOutError as reason:
        material.left_out[str(reason)] += 1


def usable(material: Material, completion: str) -> AnswerRow:
    answer = material.answers.get(completion)
    if material.reviews.get(completion) == "rejected":
        raise LeftOutError("rejected in review")
    if answer is None:
        raise LeftOutError("its answer was deleted or never recorded")
    if answer.prompt is None or answer.reply is None:
        raise LeftOutError("its content was not kept")
    if not isinstance(answer.prompt, list):
        raise LeftOutError("not a chat")
    if answer.status != 200:
        raise LeftOutError("an answer that was broken off")
    return answer


def spoken(answer: AnswerRow) -> Json:
    if answer.reply.get("tool_calls"):
        raise LeftOutError("an answer that calls tools")
    return {"role": "assistant", "content": text_of(answer.reply)}


def conversation(messages: list[Any]) -> list[Json]:
    """The messages, if one can be trained on them."""
    try:
        return Conversation.model_validate({"messages": messages}).as_dicts()
    except ValidationError:
        raise LeftOutError("messages that cannot be trained on") from None


def lineage(answer: AnswerRow, source: str, feedback: str | None) -> Json:
    """What leads from a row back to the answer and what was said of it."""
    return {
        "id": f"{source}-{answer.id}",
        "source": source,
        "completion_id": answer.id,
        "version": answer.version,
        "feedback_id": feedback,
    }


def completions_of(row: Json) -> list[str]:
    return [row[key] for key in ("completion_id", "rejected_completion_id") if key in row]


def one_side(rows: Iterator[Json], material: Material, split: Split) -> Iterator[Json]:
    """The rows of one split. A prompt that would lie on both sides is held out."""
    sided = [(row, side_of(material.answers[row["completion_id"]], material)) for row in rows]
    held_out = {prompt_of(row) for row, side in sided if side is Split.HELD_OUT}
    for row, side in sided:
        if side is Split.TRAIN and prompt_of(row) in held_out:
            material.left_out["the same prompt is held out"] += 1
        elif side is split:
            yield row
        else:
            material.left_out[f"in the split {side}"] += 1


def side_of(answer: AnswerRow, material: Material) -> Split:
    """By the first question of its conversation, so that conversations which begin alike stay together."""
    question = material.firsts.get(answer.conversation or "") or first_question(answer.prompt)
    drawn = int(hashlib.sha256(" ".join(question.lower().split()).encode()).hexdigest()[:8], 16)
    return Split.HELD_OUT if drawn % HELD_OUT_OF == 0 else Split.TRAIN


def first_question(prompt: Any) -> str:
    if not isinstance(prompt, list):
        return str(prompt or "")
    return next((text_of(one) for one in prompt if isinstance(one, dict) and one.get("role") == "user"), "")


def prompt_of(row: Json) -> str:
    return json.dumps(row["prompt"] if "prompt" in row else row["messages"][:-1], sort_keys=True)
