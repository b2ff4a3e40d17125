"""Rows of a file -> token ids with labels on the assistant's tokens only, proven row by row."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from polytone.contract.errors import InputError
from polytone.contract.rows import Conversation, RowFile, Verdict

IGNORED = -100
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """`input_ids` and `labels` have the same length; labels are `IGNORED` outside the assistant's turns."""

    input_ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        return sum(label != IGNORED for label in self.labels)


def tokenize(file: RowFile[Conversation], tokenizer: Any, max_length: int, system_prompt: str | None) -> list[Row]:
    """Tokenize every conversation of a file.

    Works with any chat template, with or without generation markers: the template is rendered up to each assistant
    turn and past it, and the tokens in between are supervised up to and including the end-of-turn token.

    Raises:
        InputError: `rows_too_long` (nothing is ever cut silently) or `template_unsupported`.
    """
    rows = [tokenize_conversation(row, tokenizer, system_prompt) for row in file.rows]
    refuse_long(file.path, rows, max_length)
    return rows


def tokenize_verdicts(file: RowFile[Verdict], tokenizer: Any, max_length: int, system_prompt: str | None) -> list[Row]:
    """As `tokenize`, with the judged reply supervised alone: nobody judged the turns before it."""
    rows = [tokenize_conversation(row.conversation(), tokenizer, system_prompt, last_only=True) for row in file.rows]
    refuse_long(file.path, rows, max_length)
    return rows


def refuse_long(path: str, rows: list[Row], max_length: int) -> None:
    long = [(number, len(row.input_ids)) for number, row in enumerate(rows, 1) if len(row.input_ids) > max_length]
    if long:
        shown = ", ".join(f"row {number} ({length} tokens)" for number, length in long[:10])
        raise InputError(
            f"{path}: {len(long)} rows are longer than training.max_length {max_length}: {shown}. "
            "Raise max_length or shorten the rows; they are never cut silently.",
            code="rows_too_long",
            param="training.max_length",
        )


def tokenize_conversation(
    conversation: Conversation, tokenizer: Any, system_prompt: str | None, last_only: bool = False
) -> Row:
    messages = with_system(conversation.as_dicts(), system_prompt)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True)
        after = tokenizer.apply_chat_template(messages[: index + 1], tokenize=False)
        if not (text.startswith(before) and text.startswith(after) and len(after) > len(before)):
            raise InputError(
                "The base's chat template rewrites earlier turns when later ones follow, so the assistant's tokens "
                "cannot be told apart. Use a base whose template only appends.",
                code="template_unsupported",
            )
        spans.append((len(before), len(after)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    labels = [IGNORED] * len(ids)
    for span in spans[-1:] if last_only else spans:
        supervise(ids, labels, encoded["offset_mapping"], span, tokenizer.eos_token_id)
    return Row(ids, labels)


def with_system(messages: list[dict[str, str]], system_prompt: str | None) -> list[dict[str, str]]:
    """The messages as the server will send them: the voice's system prompt first where the row has none."""
    if system_prompt is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]


def supervise(
    ids: Sequence[int],
    labels: list[int],
    offsets: Sequence[tuple[int, int]],
    span: tuple[int, int],
    end_of_turn: int,
) -> None:
    """Copy the ids of one assistant turn into `labels`, up to and including its first end-of-turn token."""
    start, end = span
    for position, (first, last) in enumerate(offsets):
        if first < start or last > end or first == last:
            continue
        labels[position] = ids[position]
        if ids[position] == end_of_turn:
            return
    raise InputError(
        "The base's chat template does not end the assistant's turn with the tokenizer's end-of-sequence token, so "
        "the voice would never learn to stop. Set eos_token in the base's tokenizer_config.json to the token that "
        "ends a turn.",
        code="template_unsupported",
    )


def split(rows: list[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    """Shuffle by `seed` and hold out `share` of the rows, at least one.

    Raises:
        InputError: `too_few_rows` with fewer than two rows.
    """
    if len(rows) < 2:
        raise InputError(
            "One row cannot be split into training and held-out data. Add rows or name data.held_out.",
            code="too_few_rows",
            param="data.train",
        )
    order = list(rows)
    random.Random(seed).shuffle(order)  # noqa: S311 - a reproducible split, no secret
    count = max(1, round(share * len(order)))
    return order[count:], order[:count]
