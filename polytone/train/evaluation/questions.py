"""Questions from held-out conversations with their reference replies, and a model's replies to them."""

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

# Small enough for progress every few seconds on a slow machine; a batch takes as long as its longest reply.
ROWS_AT_ONCE = 16
LONGEST_PROMPT = 1024
LONGEST_REPLY = 256
SEED = 0


@dataclass(frozen=True)
class Question:
    """One turn of a held-out conversation: `text` is what the user said last.

    `reference` is the conversation's own reply to it, `voice_replies` are all replies in the conversation.
    """

    prompt: Prompt
    text: str
    reference: str
    voice_replies: tuple[str, ...]


@dataclass(frozen=True)
class Replies:
    """Replies in the order of the prompts, and the seconds a token took, in batches of up to `ROWS_AT_ONCE`."""

    replies: list[GeneratedReply]
    seconds_per_token: float


def draw_questions(
    conversations: list[Conversation], tokenizer: Any, system_prompt: str | None, count: int, longest: int
) -> list[Question]:
    """One turn from each of up to `count` conversations, drawn by a hash of the content.

    Args:
        longest: prompts of more tokens are skipped.
    """
    questions: list[Question] = []
    keyed = [(conversation_hash(row, SEED), row) for row in conversations]
    for key, conversation in sorted(keyed, key=lambda pair: pair[0]):
        messages = conversation.as_dicts()
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        turn = turns[key % len(turns)]
        prompt = make_prompt(messages[:turn], tokenizer, system_prompt)
        if len(questions) < count and len(prompt.ids) <= longest:
            user_texts = [message["content"] for message in messages[:turn] if message["role"] == "user"]
            voice_replies = tuple(messages[index]["content"] for index in turns)
            questions.append(Question(prompt, user_texts[-1], messages[turn]["content"], voice_replies))
    return questions


def reply_limit(questions: list[Question], tokenizer: Any, most: int) -> int:
    """Tokens after which a reply is cut: one and a half times the 90th percentile of the reference replies.

    A voice that has not finished by then does not finish as it was taught to.
    """
    lengths = sorted(len(tokenizer(one.reference, add_special_tokens=False)["input_ids"]) + 1 for one in questions)
    usual = lengths[(9 * len(lengths)) // 10 if len(lengths) > 1 else 0]
    return min(usual + usual // 2, most)


def generate_all(
    model: Any, tokenizer: Any, prompts: list[Prompt], settings: GenerationConfig, progress: Progress
) -> Replies:
    """Reply to every prompt, and take the time."""
    model.eval()
    began = time.monotonic()
    batches = list(small_batches(prompts, settings.max_new_tokens))
    replies = generate_replies(model, tokenizer, prompts, batches, settings, progress, "")
    tokens = sum(reply.tokens for reply in replies)
    return Replies(replies, (time.monotonic() - began) / max(1, tokens))


def small_batches(prompts: list[Prompt], new_tokens: int) -> Iterator[list[int]]:
    for batch in in_batches(prompts, new_tokens):
        for start in range(0, len(batch), ROWS_AT_ONCE):
            yield batch[start : start + ROWS_AT_ONCE]
