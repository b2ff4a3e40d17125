"""Tokenization: rows of a file as token ids, with labels on the assistant's tokens only."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel

from polytone.contract.errors import InputError
from polytone.contract.rows import Conversation, Verdict
from polytone.train.dataset.training_rows import RowFile

IGNORED = -100
T = TypeVar("T")
R = TypeVar("R", bound=BaseModel)
TooLong = Literal["refuse", "drop", "cut"]


@dataclass(frozen=True)
class Row:
    """`input_ids` and `labels` have the same length; labels are `IGNORED` outside the assistant's turns."""

    input_ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        return sum(label != IGNORED for label in self.labels)

    def cut(self, length: int) -> "Row":
        return Row(self.input_ids[:length], self.labels[:length])


@dataclass(frozen=True)
class Fitted(Generic[R]):
    """Rows that fit into `training.max_length`: their tokens (one `Row` per reply) and the row of the file."""

    rows: list[tuple[tuple[Row, ...], R]]
    cut: int = 0
    dropped: int = 0

    @property
    def single(self) -> list[Row]:
        """The only reply of each row."""
        return [replies[0] for replies, _ in self.rows]

    @property
    def sources(self) -> list[R]:
        return [source for _, source in self.rows]

    def split(self, share: float, seed: int) -> tuple["Fitted[R]", "Fitted[R]"]:
        """The training rows and the held-out rows; as `split`."""
        kept, held = split(self.rows, share, seed)
        return Fitted(kept, self.cut, self.dropped), Fitted(held)


def tokenize(
    file: RowFile[Conversation],
    tokenizer: Any,
    max_length: int,
    system_prompt: str | None,
    too_long: TooLong = "refuse",
) -> Fitted[Conversation]:
    """Tokenize every conversation of a file.

    Works with any chat template, with or without generation markers: the template is rendered before and after each
    assistant turn, and the tokens between are supervised up to and including the end-of-turn token.

    Raises:
        InputError: `rows_too_long` (nothing is cut or dropped unless the recipe says so) or `template_unsupported`.
    """
    replies = [(tokenize_conversation(row, tokenizer, system_prompt),) for row in file.rows]
    return within_length(file, replies, max_length, too_long)


def tokenize_verdicts(
    file: RowFile[Verdict], tokenizer: Any, max_length: int, system_prompt: str | None, too_long: TooLong = "refuse"
) -> Fitted[Verdict]:
    """As `tokenize`, with only the judged reply supervised: the turns before it were not judged."""
    replies = [(tokenize_reply(row.conversation(), tokenizer, system_prompt),) for row in file.rows]
    return within_length(file, replies, max_length, too_long)


def tokenize_reply(conversation: Conversation, tokenizer: Any, system_prompt: str | None) -> Row:
    """The conversation with only its last turn supervised."""
    return tokenize_conversation(conversation, tokenizer, system_prompt, last_only=True)


def within_length(
    file: RowFile[R], replies: Sequence[tuple[Row, ...]], max_length: int, too_long: TooLong
) -> Fitted[R]:
    """Refuse, drop or cut rows of more than `max_length` tokens; a cut that leaves nothing to learn drops the row."""
    long = [index for index, row in enumerate(replies) if longest(row) > max_length]
    if too_long == "refuse":
        refuse_long(file, [(index, longest(replies[index])) for index in long], max_length)
    cut = [tuple(reply.cut(max_length) for reply in row) for row in replies]
    gone = {i for i in long if too_long == "drop" or not all(reply.supervised for reply in cut[i])}
    kept = [(cut[index], row) for index, row in enumerate(file.rows) if index not in gone]
    if not kept:
        raise InputError(
            f"{file.path}: no row fits into training.max_length {max_length}. Raise it.",
            code="rows_too_long",
            param="training.max_length",
        )
    return Fitted(kept, cut=len(long) - len(gone), dropped=len(gone))


def longest(replies: tuple[Row, ...]) -> int:
    return max(len(reply.input_ids) for reply in replies)


def refuse_long(file: RowFile[Any], long: list[tuple[int, int]], max_length: int) -> None:
    if long:
        shown = ", ".join(f"line {file.lines[index]} ({length} tokens)" for index, length in long[:10])
        more = f" and {len(long) - 10} more" if len(long) > 10 else ""
        raise InputError(
            f"{file.path}: {len(long)} rows are longer than training.max_length {max_length}: {shown}{more}. "
            "Raise max_length, shorten the rows, or set data.too_long to drop or cut.",
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
                "cannot be identified. Use a base whose template only appends.",
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
    """The messages as the server will send them: with the voice's system prompt first if they have none."""
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


def prompt_and_reply(row: Row) -> tuple[list[int], list[int]]:
    """The ids before the judged reply, and the reply up to and including its end-of-turn token."""
    supervised = [index for index, label in enumerate(row.labels) if label != IGNORED]
    first, last = supervised[0], supervised[-1] + 1
    return row.input_ids[:first], row.input_ids[first:last]


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
    random.Random(seed).shuffle(order)  # noqa: S311 - a reproducible split, not a secret
    count = max(1, round(share * len(order)))
    return order[count:], order[:count]
