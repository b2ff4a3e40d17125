"""Lengths of rows, in tokens of a base or in words."""

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel

from polytone.contract.base import base_folder, load_base
from polytone.contract.home import Home

from .formats import Row
from .overlap import split_words

Count = Callable[[list[str]], list[int]]


class Quantiles(BaseModel):
    """The smallest and largest value, and percentiles in between."""

    min: float
    p5: float
    p50: float
    p95: float
    p99: float
    max: float


class Lengths(BaseModel):
    """`unit` is `words`, or `tokens of BASE`: of the texts, without those of the chat template."""

    unit: str
    row: Quantiles
    prompt: Quantiles
    reply: Quantiles


def counter(home: Home, base_id: str | None) -> tuple[str, Count]:
    """The unit to count in, and a function that counts it in texts.

    Raises:
        NotFoundError, CheckError: the base is not prepared, or damaged.
    """
    if base_id is None:
        return "words", lambda texts: [len(split_words(text)) for text in texts]
    from tokenizers import Tokenizer

    load_base(home, base_id)
    tokenizer = Tokenizer.from_file(str(base_folder(home, base_id) / "source" / "tokenizer.json"))
    return f"tokens of {base_id}", lambda texts: [
        len(one.ids) for one in tokenizer.encode_batch(texts, add_special_tokens=False)
    ]


def measure(rows: Sequence[Row], unit: str, count: Count) -> Lengths:
    """Lengths of whole rows, of everything before the last reply, and of the last reply."""
    prompts = count([" ".join(turn.content for turn in row.conversation.messages[:-1]) for row in rows])
    replies = count([row.conversation.messages[-1].content for row in rows])
    totals = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
    return Lengths(unit=unit, row=quantiles(totals), prompt=quantiles(prompts), reply=quantiles(replies))


def quantiles(values: Sequence[int]) -> Quantiles:
    low, p5, p50, p95, p99, high = np.quantile(values, [0, 0.05, 0.5, 0.95, 0.99, 1]).tolist()
    return Quantiles(min=low, p5=p5, p50=p50, p95=p95, p99=p99, max=high)
