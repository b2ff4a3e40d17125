"""Training rows made of feedback, reviews and the answers they are about."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from pydantic import ValidationError

from polytone.contract.rows import Conversation
from polytone.measure.signals import text_of
from polytone.serve.database.tables import AnswerRow, FeedbackRow

Json: TypeAlias = dict[str, Any]


@dataclass
class Material:
    """Everything the rows of one voice are made of, and counts of what was left out by reason.

    `feedback` is active feedback in the order it was given, `answers` by completion id, `reviews` the decisions on
    answers by completion id, `reviewed` the reviewed answers of this voice, and `first_questions` the first question
    of each conversation.
    """

    feedback: Sequence[FeedbackRow]
    answers: dict[str, AnswerRow]
    reviews: dict[str, str]
    first_questions: dict[str, str]
    reviewed: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)


class LeftOutError(Exception):
    """A row that should not be trained on; its message is the reason."""


def sft_rows(material: Material) -> Iterator[Json]:
    """The last correction of each answer, and answers that a reviewer accepted."""
    corrections: dict[str, FeedbackRow] = {}
    for row in material.feedback:
        if row.key == "correction":
            if row.target_id in corrections:
                material.left_out["another correction took its place"] += 1
            corrections[row.target_id] = row
    for correction in corrections.values():
        yield from row_or_reason(material, partial(corrected_row, material, correction))
    for completion, state in material.reviews.items():
        if state == "accepted" and completion in material.reviewed and completion not in corrections:
            yield from row_or_reason(material, partial(accepted_row, material, completion))


def corrected_row(material: Material, feedback: FeedbackRow) -> Json:
    answer = usable(material, feedback.target_id)
    messages = trainable([*answer.prompt, {"role": "assistant", "content": feedback.text}])
    return {**lineage(answer, "correction", feedback.id), "messages": messages}


def accepted_row(material: Material, completion: str) -> Json:
    answer = usable(material, completion)
    return {**lineage(answer, "accepted", None), "messages": trainable([*answer.prompt, reply_message(answer)])}


def kto_rows(material: Material) -> Iterator[Json]:
    """Answers with a thumb; if people disagree, the reviewer's decision counts."""
    thumbs: dict[str, list[FeedbackRow]] = {}
    for row in material.feedback:
        if row.key == "thumb" and row.target == "completion":
            thumbs.setdefault(row.target_id, []).append(row)
    for completion, rows in thumbs.items():
        yield from row_or_reason(material, partial(kto_row, material, completion, rows))


def kto_row(material: Material, completion: str, thumbs: list[FeedbackRow]) -> Json:
    answer = usable(material, completion)
    labels = {row.value == "up" for row in thumbs}
    if material.reviews.get(completion) == "accepted":
        labels = {True}
    if len(labels) > 1:
        raise LeftOutError("thumbs disagree")
    reply = reply_message(answer)
    trainable([*answer.prompt, reply])
    return {
        **lineage(answer, "thumb", thumbs[-1].id),
        "prompt": answer.prompt,
        "completion": [reply],
        "label": labels.pop(),
    }


def dpo_rows(material: Material) -> Iterator[Json]:
    """Pairs of a correction and the corrected reply, and of the winner and the loser of a vote."""
    for row in material.feedback:
        if row.key == "correction":
            yield from row_or_reason(material, partial(corrected_pair, material, row))
        elif row.key == "preference":
            yield from row_or_reason(material, partial(voted_pair, material, row))


def corrected_pair(material: Material, feedback: FeedbackRow) -> Json:
    answer = usable(material, feedback.target_id)
    return pair(
        answer, {"role": "assistant", "content": feedback.text}, reply_message(answer), "correction", feedback.id
    )


def voted_pair(material: Material, feedback: FeedbackRow) -> Json:
    a, b = usable(material, feedback.target_id), usable(material, feedback.other_id or "")
    if feedback.value["choice"] not in ("a", "b"):
        raise LeftOutError("the vote has no winner")
    if a.prompt != b.prompt:
        raise LeftOutError("the vote is between answers to different prompts")
    winner, loser = (a, b) if feedback.value["choice"] == "a" else (b, a)
    return {
        **pair(winner, reply_message(winner), reply_message(loser), "vote", feedback.id),
        "rejected_completion_id": loser.id,
    }


def pair(answer: AnswerRow, chosen: Json, rejected: Json, source: str, feedback_id: str) -> Json:
    if chosen["content"] == rejected["content"]:
        raise LeftOutError("both texts are the same")
    for reply in (chosen, rejected):
        trainable([*answer.prompt, reply])
    return {**lineage(answer, source, feedback_id), "prompt": answer.prompt, "chosen": [chosen], "rejected": [rejected]}


def row_or_reason(material: Material, make: Callable[[], Json]) -> Iterator[Json]:
    """The row; if it is left out, its reason is counted instead."""
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
        raise LeftOutError("its prompt is not a chat")
    if answer.status != 200:
        raise LeftOutError("its answer was broken off")
    return answer


def reply_message(answer: AnswerRow) -> Json:
    if answer.reply.get("tool_calls"):
        raise LeftOutError("its answer calls tools")
    return {"role": "assistant", "content": text_of(answer.reply)}


def trainable(messages: list[Any]) -> list[Json]:
    """The messages, checked as training checks them."""
    try:
        return Conversation.model_validate({"messages": messages}).as_dicts()
    except ValidationError:
        raise LeftOutError("its messages cannot be trained on") from None


def lineage(answer: AnswerRow, source: str, feedback_id: str | None) -> Json:
    """The fields that lead from a row back to its answer and feedback."""
    return {
        "id": f"{source}-{answer.id}",
        "source": source,
        "completion_id": answer.id,
        "version": answer.version,
        "feedback_id": feedback_id,
    }
