"""Held-out prompts with the answers that were hoped for, and what a model answers to them."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from polytone.contract.rows import Conversation
from polytone.progress import Progress
from polytone.train.artifact.generation import (
    GeneratedReply,
    Prompt,
    conversation_hash,
    generate_replies,
    in_batches,
    make_prompt,
)

# So that a small base on a slow machine says every few seconds how far it is; a batch is over with its longest reply.
ROWS_AT_ONCE = 16
LONGEST_PROMPT = 1024
LONGEST_REPLY = 256
SEED = 0


@dataclass(frozen=True)
class Question:
    """One turn of a held-out conversation, with what was answered to it there and all that was answered there."""

    prompt: Prompt
    asked: str
    reference: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Replies:
    """Answers in the order of the prompts, and how long a token took, in batches of up to `ROWS_AT_ONCE`."""

    answers: list[GeneratedReply]
    seconds_per_token: float


def draw_questions(
    conversations: list[Conversation], tokenizer: Any, system_prompt: str | None, count: int, longest: int
) -> list[Question]:
    """One turn from each of up to `count` conversations, drawn by a hash of the content.

    Args:
        longest: prompts of more tokens are passed over.
    """
    drawn: list[Question] = []
    keyed = sorted(((conversation_hash(row, SEED), row) for row in conversations), key=lambda pair: pair[0])
    for key, conversation in keyed:
        messages = conversation.as_dicts()
        turns = [index for index, one in enumerate(messages) if one["role"] == "assistant"]
        turn = turns[key % len(turns)]
        prompt = make_prompt(messages[:turn], tokenizer, system_prompt)
        if len(drawn) < count and len(prompt.ids) <= longest:
            asked = [one["content"] for one in messages[:turn] if one["role"] == "user"]
            answers = tuple(messages[index]["content"] for index in turns)
            drawn.append(Question(prompt, asked[-1], messages[turn]["content"], answers))
    return drawn


def reply_limit(questions: list[Question], tokenizer: Any, most: int) -> int:
    """Tokens after which a reply is cut: one and a half times what nine of ten reference answers stay under.

    A voice that does not end by then does not end as it was taught to.
    """
    lengths = sorted(len(tokenizer(one.reference, add_special_tokens=False)["input_ids"]) + 1 for one in questions)
    usual = lengths[(9 * len(lengths)) // 10 if len(lengths) > 1 else 0]
    return min(usual + usual // 2, most)


def hear(
    model: Any, tokenizer: Any, prompts: list[Prompt], settings: GenerationConfig, progress: Progress, note: str
) -> Replies:
    """Answer every prompt."""
    model.eval()
    began = time.monotonic()
    batches = list(small_batches(prompts, settings.max_new_tokens))
    answers = generate_replies(model, tokenizer, prompts, batches, settings, progress, note)
    tokens = sum(one.tokens for one in answers)
    return Replies(answers, (time.monotonic() - began) / max(1, tokens))


def small_batches(prompts: list[Prompt], new_tokens: int) -> Iterator[list[int]]:
    for batch in in_batches(prompts, new_tokens):
        for start in range(0, len(batch), ROWS_AT_ONCE):
            yield batch[start : start + ROWS_AT_ONCE]
