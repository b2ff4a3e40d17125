"""Replies to held-out prompts by a version and by its base, sampled as a server samples them.

Drift in traffic is measured against them (docs/decisions/0008-references-are-answers.md).
"""

from typing import Any

import torch

from polytone.contract.reference import ReferenceRow
from polytone.contract.rows import Conversation
from polytone.progress import Progress
from polytone.train.recipe import Recipe

from .generation import (
    GeneratedReply,
    Prompt,
    conversation_hash,
    generate_replies,
    in_batches,
    make_prompt,
    sampling,
)

LONGEST_PROMPT = 1024


def take_reference(
    model: Any,
    tokenizer: Any,
    conversations: list[Conversation],
    recipe: Recipe,
    max_length: int,
    progress: Progress,
) -> list[ReferenceRow]:
    """Reply to up to `drift.rows` prompts with the adapter and without; the same recipe gives the same rows.

    Args:
        max_length: positions of the base; prompts that leave no room for a reply are skipped.
    """
    new_tokens = reply_limit(recipe)
    prompts = draw_prompts(conversations, tokenizer, recipe, min(LONGEST_PROMPT, max_length - new_tokens))
    if not prompts:
        return []
    batches = list(in_batches(prompts, new_tokens))
    settings = sampling(model, tokenizer, recipe.sampling, new_tokens)
    model.eval()
    torch.manual_seed(recipe.training.seed)
    progress.start("Generating the drift reference", total=2 * len(prompts))
    voice = generate_replies(model, tokenizer, prompts, batches, settings, progress, "voice")
    with model.disable_adapter():
        base = generate_replies(model, tokenizer, prompts, batches, settings, progress, "base")
    progress.finish()
    return [as_row(*triple) for triple in zip(prompts, voice, base, strict=True)]


def reply_limit(recipe: Recipe) -> int:
    """Tokens after which a reply is cut: the voice's own limit where that is lower."""
    own = recipe.sampling.max_tokens if recipe.sampling else None
    return min(own or recipe.drift.max_tokens, recipe.drift.max_tokens)


def draw_prompts(conversations: list[Conversation], tokenizer: Any, recipe: Recipe, longest: int) -> list[Prompt]:
    """One turn of each conversation, both drawn by a hash of seed and content, independent of the order of rows."""
    prompts: list[Prompt] = []
    keyed = [(conversation_hash(row, recipe.training.seed), row) for row in conversations]
    for key, conversation in sorted(keyed, key=lambda pair: pair[0]):
        if len(prompts) == recipe.drift.rows:
            break
        messages = conversation.as_dicts()
        questions = [index for index, message in enumerate(messages) if message["role"] == "user"]
        prompt = make_prompt(messages[: questions[key % len(questions)] + 1], tokenizer, recipe.system_prompt)
        if len(prompt.ids) <= longest:
            prompts.append(prompt)
    return prompts


def as_row(prompt: Prompt, voice: GeneratedReply, base: GeneratedReply) -> ReferenceRow:
    return ReferenceRow.model_validate(
        {
            "messages": prompt.messages,
            "reply": voice.text,
            "reply_tokens": voice.tokens,
            "finish_reason": voice.finish_reason,
            "base_reply": base.text,
            "base_reply_tokens": base.tokens,
            "base_finish_reason": base.finish_reason,
        }
    )
