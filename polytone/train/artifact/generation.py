"""Text generation in batches by a model that is being trained or measured, sampled as the server samples."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from polytone.contract.manifest import Sampling
from polytone.contract.reference import FinishReason
from polytone.contract.rows import Conversation
from polytone.progress import Progress
from polytone.train.tokenization import with_system

# Prompt and reply tokens of one batch. Every decoding step unpacks the whole NF4 base, so a few large batches are
# fastest; this bound keeps the key-value cache of the small default base below a gigabyte. (One batch that mixes rows
# with and without the adapter, which PEFT offers, is slower than two batches.)
TOKENS_AT_ONCE = 16_384


@dataclass(frozen=True)
class Prompt:
    """Messages, and the token ids that the chat template makes of them."""

    messages: list[dict[str, str]]
    ids: list[int]


@dataclass(frozen=True)
class GeneratedReply:
    """A reply; `tokens` counts its end-of-turn token too."""

    text: str
    tokens: int
    finish_reason: FinishReason


def make_prompt(messages: list[dict[str, str]], tokenizer: Any, system_prompt: str | None) -> Prompt:
    """The conversation so far as the server hands it to the engine."""
    messages = with_system(messages, system_prompt)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return Prompt(messages, tokenizer(text, add_special_tokens=False)["input_ids"])


def conversation_hash(conversation: Conversation, seed: int) -> int:
    """A number that depends on seed and content alone, to draw turns and conversations by."""
    content = json.dumps([seed, conversation.as_dicts()], sort_keys=True)
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8])


def in_batches(prompts: list[Prompt], new_tokens: int) -> Iterator[list[int]]:
    """Indices of `prompts`, grouped by similar length, as many per batch as `TOKENS_AT_ONCE` allows."""
    batch: list[int] = []
    for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids)):
        # Sorted, so that this prompt is the longest of its batch.
        if batch and (len(batch) + 1) * (len(prompts[index].ids) + new_tokens) > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def sampling(model: Any, tokenizer: Any, voice: Sampling | None, new_tokens: int) -> GenerationConfig:
    """The voice's sampling defaults; what they leave open is OpenAI's default, as in the engine."""
    base = model.generation_config
    temperature = first_set(voice and voice.temperature, 1.0)
    ends = base.eos_token_id if isinstance(base.eos_token_id, list) else [base.eos_token_id]
    choice = (
        {
            "do_sample": True,
            "temperature": temperature,
            "top_p": first_set(voice and voice.top_p, 1.0),
            "top_k": 0,  # the default of transformers is 50
        }
        if temperature
        else {"do_sample": False}
    )
    return GenerationConfig(
        **choice,
        max_new_tokens=new_tokens,
        use_cache=True,
        pad_token_id=first_set(tokenizer.pad_token_id, tokenizer.eos_token_id),
        eos_token_id=sorted({tokenizer.eos_token_id, *(end for end in ends if end is not None)}),
    )


def first_set(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def generate_replies(
    model: Any,
    tokenizer: Any,
    prompts: list[Prompt],
    batches: list[list[int]],
    settings: GenerationConfig,
    progress: Progress,
    note: str,
) -> list[GeneratedReply]:
    """A reply to each prompt, in the order of the prompts."""
    replies: dict[int, GeneratedReply] = {}
    for batch in batches:
        generated = generate(model, [prompts[index].ids for index in batch], settings)
        replies.update(zip(batch, (decode_reply(ids, tokenizer, settings) for ids in generated), strict=True))
        progress.advance(note, steps=len(batch))
    return [replies[index] for index in range(len(prompts))]


@torch.inference_mode()  # type: ignore[untyped-decorator]
def generate(model: Any, prompts: list[list[int]], settings: GenerationConfig) -> list[list[int]]:
    """Token ids after each prompt; prompts are padded on the left, so that all replies start at one position."""
    rows = [torch.tensor(ids) for ids in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_value=settings.pad_token_id, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    output = model.generate(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
    )
    replies: list[list[int]] = output[:, ids.shape[1] :].tolist()
    return replies


def decode_reply(ids: list[int], tokenizer: Any, settings: GenerationConfig) -> GeneratedReply:
    """The reply up to its end; what follows is padding."""
    ends = [index for index, token in enumerate(ids) if token in settings.eos_token_id]
    length = ends[0] + 1 if ends else len(ids)
    text = tokenizer.decode(ids[: length - bool(ends)], skip_special_tokens=True)
    return GeneratedReply(text, length, "stop" if ends else "length")
