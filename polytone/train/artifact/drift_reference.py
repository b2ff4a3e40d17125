"""Answers to held-out prompts, by the voice and by its bare base, sampled as a server samples them.

They are what drift in traffic is measured against (docs/decisions/0008-references-are-answers.md).
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from polytone.contract.adapter import Sampling
from polytone.contract.reference import FinishReason, ReferenceRow
from polytone.contract.rows import Conversation
from polytone.train.progress import Progress
from polytone.train.recipe import Recipe
from polytone.train.tokenization import with_system

LONGEST_PROMPT = 1024
# Prompt and reply tokens of one batch. A step of decoding unpacks the whole NF4 base, so few large batches are fastest;
# the bound keeps the keys and values of the small default base below a gigabyte. (Voice and base in one batch of PEFT's
# mixed kind are slower than one after the other.)
TOKENS_AT_ONCE = 16_384


@dataclass(frozen=True)
class Prompt:
    messages: list[dict[str, str]]
    ids: list[int]


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: int
    finish_reason: FinishReason


def take_reference(
    model: Any,
    tokenizer: Any,
    conversations: list[Conversation],
    recipe: Recipe,
    max_length: int,
    progress: Progress,
) -> list[ReferenceRow]:
    """Answer up to `drift.rows` prompts with the adapter and without; the same recipe gives the same rows.

    Args:
        max_length: positions the base has; prompts that leave no room for a reply are passed over.
    """
    new_tokens = reply_limit(recipe)
    prompts = draw_prompts(conversations, tokenizer, recipe, min(LONGEST_PROMPT, max_length - new_tokens))
    if not prompts:
        return []
    batches = list(in_batches(prompts, new_tokens))
    settings = sampling(model, tokenizer, recipe.sampling, new_tokens)
    model.eval()
    torch.manual_seed(recipe.training.seed)
    progress.start("Answering held-out prompts for the drift reference", total=2 * len(prompts))
    voice = answer(model, tokenizer, prompts, batches, settings, progress, "voice")
    with model.disable_adapter():
        base = answer(model, tokenizer, prompts, batches, settings, progress, "base")
    progress.finish()
    return [as_row(*three) for three in zip(prompts, voice, base, strict=True)]


def reply_limit(recipe: Recipe) -> int:
    """Tokens after which a reply is cut: the voice's own limit where that is lower."""
    mine = recipe.sampling.max_tokens if recipe.sampling else None
    return min(mine or recipe.drift.max_tokens, recipe.drift.max_tokens)


def draw_prompts(conversations: list[Conversation], tokenizer: Any, recipe: Recipe, longest: int) -> list[Prompt]:
    """One turn of each conversation, both drawn by a hash of seed and content, so that no order of rows matters."""
    drawn: list[Prompt] = []
    keyed = sorted(((hash_of(row, recipe.training.seed), row) for row in conversations), key=lambda pair: pair[0])
    for key, conversation in keyed:
        if len(drawn) == recipe.drift.rows:
            break
        messages = conversation.as_dicts()
        asked = [index for index, message in enumerate(messages) if message["role"] == "user"]
        prompt = make_prompt(messages[: asked[key % len(asked)] + 1], tokenizer, recipe.system_prompt)
        if len(prompt.ids) <= longest:
            drawn.append(prompt)
    return drawn


def make_prompt(messages: list[dict[str, str]], tokenizer: Any, system_prompt: str | None) -> Prompt:
    """What was said so far, as the server hands it to the engine."""
    whole = with_system(messages, system_prompt)
    text = tokenizer.apply_chat_template(whole, tokenize=False, add_generation_prompt=True)
    return Prompt(whole, tokenizer(text, add_special_tokens=False)["input_ids"])


def hash_of(conversation: Conversation, seed: int) -> int:
    content = json.dumps([seed, conversation.as_dicts()], sort_keys=True)
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8])


def in_batches(prompts: list[Prompt], new_tokens: int) -> Iterator[list[int]]:
    """Indices of `prompts`, those of like length together, as many at once as `TOKENS_AT_ONCE` allows."""
    batch: list[int] = []
    for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids)):
        # Sorted, so that this prompt is the longest of its batch.
        if batch and (len(batch) + 1) * (len(prompts[index].ids) + new_tokens) > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def sampling(model: Any, tokenizer: Any, mine: Sampling | None, new_tokens: int) -> GenerationConfig:
    """The voice's defaults; what it leaves open is OpenAI's default, as it is in the engine."""
    base = model.generation_config
    temperature = first_given(mine and mine.temperature, 1.0)
    ends = base.eos_token_id if isinstance(base.eos_token_id, list) else [base.eos_token_id]
    choice = (
        {
            "do_sample": True,
            "temperature": temperature,
            "top_p": first_given(mine and mine.top_p, 1.0),
            "top_k": 0,  # transformers would take 50
        }
        if temperature
        else {"do_sample": False}
    )
    return GenerationConfig(
        **choice,
        max_new_tokens=new_tokens,
        use_cache=True,
        pad_token_id=first_given(tokenizer.pad_token_id, tokenizer.eos_token_id),
        eos_token_id=sorted({tokenizer.eos_token_id, *(end for end in ends if end is not None)}),
    )


def first_given(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def answer(
    model: Any,
    tokenizer: Any,
    prompts: list[Prompt],
    batches: list[list[int]],
    settings: GenerationConfig,
    progress: Progress,
    note: str,
) -> list[Answer]:
    """An answer to each prompt, in the prompts' order."""
    answers: dict[int, Answer] = {}
    for batch in batches:
        replies = generate(model, [prompts[index].ids for index in batch], settings)
        answers.update(zip(batch, (read_answer(ids, tokenizer, settings) for ids in replies), strict=True))
        progress.advance(note, steps=len(batch))
    return [answers[index] for index in range(len(prompts))]


@torch.inference_mode()  # type: ignore[untyped-decorator]
def generate(model: Any, prompts: list[list[int]], settings: GenerationConfig) -> list[list[int]]:
    """Ids after each prompt; prompts are padded on the left, so that all replies start at one position."""
    longest = max(map(len, prompts))
    padding = [longest - len(ids) for ids in prompts]
    rows = [[settings.pad_token_id] * count + ids for count, ids in zip(padding, prompts, strict=True)]
    mask = [[0] * count + [1] * (longest - count) for count in padding]
    output = model.generate(
        input_ids=torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=settings,
    )
    replies: list[list[int]] = output[:, longest:].tolist()
    return replies


def read_answer(ids: list[int], tokenizer: Any, settings: GenerationConfig) -> Answer:
    """The reply up to its end; what follows is padding."""
    ends = [index for index, token in enumerate(ids) if token in settings.eos_token_id]
    length = ends[0] + 1 if ends else len(ids)
    text = tokenizer.decode(ids[: length - bool(ends)], skip_special_tokens=True)
    return Answer(text, length, "stop" if ends else "length")


def as_row(prompt: Prompt, voice: Answer, base: Answer) -> ReferenceRow:
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
