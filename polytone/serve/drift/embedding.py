"""Embeddings of texts from the base's own token embeddings: no other model is needed, and a text takes 0.1 ms.

A text's vector is the weighted mean of its tokens' vectors in the whitened table; rare tokens weigh more (Arora et al.
2017, "A Simple but Tough-to-Beat Baseline for Sentence Embeddings"). docs/monitoring.md compares it with sentence
encoders.
"""

from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]

DIMENSION = 128
COMMON = 1e-4  # tokens with a larger share of all text weigh less
LONGEST = 1024  # tokens of a text that are used
TABLES = ("model.embed_tokens.weight", "transformer.wte.weight", "embed_tokens.weight")


class Embedding(Protocol):
    """Turns texts into vectors (n, dimension), float32 of length one; zeros for an empty text."""

    def __call__(self, texts: list[str]) -> Floats: ...


class TokenEmbedding:
    """The mean of token vectors. `table` (vocabulary, dimension) holds a weighted vector for every token."""

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
                if name in tensors.keys():  # noqa: SIM118 - not a dictionary
                    return np.asarray(tensors.get_tensor(name).float().numpy())
    raise KeyError(f"{weights}: no token embeddings under {', '.join(TABLES)}")


def reduced(table: Floats) -> Floats:
    """(vocabulary, DIMENSION): the table whitened, its rows scaled to length one, weighted by rarity and projected.

    Without whitening, the few directions that all tokens share would hide the differences between them. A random
    projection preserves distances (Johnson and Lindenstrauss 1984). Tokenizers number tokens in the order of merging,
    so a token's number gives its rank and, by Zipf's law, its frequency.
    """
    centred = table - table.mean(axis=0)
    spread, axes = np.linalg.eigh(centred.T @ centred / len(table))
    whitened = centred @ (axes / np.sqrt(np.maximum(spread, 1e-9)))
    whitened /= np.linalg.norm(whitened, axis=1, keepdims=True).clip(1e-9)
    frequency = 1 / ((np.arange(len(table)) + 2.7) * np.log(len(table)))
    projection = np.random.default_rng(0).normal(size=(table.shape[1], DIMENSION)) / np.sqrt(DIMENSION)
    return np.asarray(whitened * (COMMON / (COMMON + frequency))[:, None] @ projection)
