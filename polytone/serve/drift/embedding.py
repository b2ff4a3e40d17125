"""Texts as vectors, from the base's own table of token embeddings: no model of its own, and a tenth of a millisecond.

A text is the weighted mean of its tokens' vectors, rare tokens weighing more (Arora et al. 2017, "A Simple but
Tough-to-Beat Baseline for Sentence Embeddings"), on the whitened table. docs/monitoring.md compares it with sentence
encoders.
"""

from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]

DIMENSION = 128
COMMON = 1e-4  # a token's share of all text above which it weighs less
LONGEST = 1024  # tokens of a text that are looked at
TABLES = ("model.embed_tokens.weight", "transformer.wte.weight", "embed_tokens.weight")


class Embedding(Protocol):
    """Texts to vectors (n, dimension), float32 of length one; of an empty text, zeros."""

    def __call__(self, texts: list[str]) -> Floats: ...


class TokenEmbedding:
    """`table` (vocabulary, dimension) holds a weighted vector for every token."""

    def __init__(self, tokenizer: Any, table: Floats) -> None:
        self._tokenizer = tokenizer
        self._table = table

    def __call__(self, texts: list[str]) -> Floats:
        return np.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> Floats:
        tokens = self._tokenizer.encode(text, add_special_tokens=False).ids[:LONGEST]
        total = self._table[tokens].astype(np.float32).sum(axis=0)
        return np.asarray(total / max(float(np.linalg.norm(total)), 1e-9), dtype=np.float32)


def token_embedding(weights: Path) -> TokenEmbedding:
    """Read tokenizer and embedding table from a base's folder of weights.

    Raises:
        FileNotFoundError, KeyError: the folder has no tokenizer.json, or no table under a known name.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(weights / "tokenizer.json"))
    return TokenEmbedding(tokenizer, reduced(read_table(weights)).astype(np.float16))


def read_table(weights: Path) -> Floats:
    from safetensors import safe_open

    for file in sorted(weights.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in TABLES:
                if name in tensors.keys():  # noqa: SIM118 - no dictionary
                    return np.asarray(tensors.get_tensor(name).float().numpy())
    raise KeyError(f"{weights}: no token embeddings under {', '.join(TABLES)}")


def reduced(table: Floats) -> Floats:
    """(vocabulary, dimension): the table whitened, tokens of equal length, each weighed by how rare it is, projected.

    Whitening keeps the few directions that all tokens share from drowning what tells them apart; a random projection
    keeps distances (Johnson and Lindenstrauss 1984). Tokenizers number their tokens in the order they were merged, so
    that the number stands for the rank, and by Zipf's law for the frequency.
    """
    centred = table - table.mean(axis=0)
    spread, axes = np.linalg.eigh(centred.T @ centred / len(table))
    whitened = centred @ (axes / np.sqrt(np.maximum(spread, 1e-9)))
    whitened /= np.linalg.norm(whitened, axis=1, keepdims=True).clip(1e-9)
    frequency = 1 / ((np.arange(len(table)) + 2.7) * np.log(len(table)))
    projection = np.random.default_rng(0).normal(size=(table.shape[1], DIMENSION)) / np.sqrt(DIMENSION)
    return np.asarray(whitened * (COMMON / (COMMON + frequency))[:, None] @ projection)
