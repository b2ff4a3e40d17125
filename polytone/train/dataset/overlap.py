"""Conversations as sequences of word ids, and the words that two sequences have in common."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import LCSseq

from polytone.contract.rows import Message

# A word is what stands between spaces, without punctuation around it. In scripts without spaces each letter is a word.
UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}](?:[^\s{UNSPACED}]*[^\W_{UNSPACED}])?")
TURN_MARKS = {"<user>": 0, "<assistant>": 1, "<tool>": 2}
END, MARKS = 3, 4  # ids below MARKS are marks, not words
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EncodedRows:
    """The words of every row as ids, from `MARKS` to `size` - 1.

    `bodies`: all words but the system prompt's. `sides`: the same in two parts, prompt and assistant's turns. `marked`:
    the words with a mark before every turn and end marks around the row, so that the first and last word of a turn have
    neighbours too. `numbers`: the ids of words with a digit.
    """

    bodies: list[list[int]]
    sides: list[tuple[list[int], list[int]]]
    marked: list[list[int]]
    numbers: list[frozenset[int]]
    size: int


def split_words(text: str) -> list[str]:
    """The words of a text in lower case, without the punctuation around them."""
    return WORD.findall(text.casefold())


def encode_rows(rows: Sequence[Sequence[Message]]) -> EncodedRows:
    """Give every distinct word of these conversations an id."""
    id_of = {**TURN_MARKS, "<end>": END}
    bodies, sides, marked, numbers = [], [], [], []
    for messages in rows:
        body: list[int] = []
        side: tuple[list[int], list[int]] = ([], [])
        with_marks: list[int] = [END]
        with_digits: set[int] = set()
        for message in messages:
            if message.role == "system":
                continue
            words = split_words(message.content)
            ids = [id_of.setdefault(word, len(id_of)) for word in words]
            with_digits.update(number for number, word in zip(ids, words, strict=True) if has_digit(word))
            body.extend(ids)
            side[message.role == "assistant"].extend(ids)
            with_marks.extend([id_of[f"<{message.role}>"], *ids])
        bodies.append(body)
        sides.append(side)
        marked.append([*with_marks, END, END])
        numbers.append(frozenset(with_digits))
    return EncodedRows(bodies, sides, marked, numbers, len(id_of))


def has_digit(word: str) -> bool:
    return not word.isalpha() and any(letter.isdigit() for letter in word)


def similarity(a: Sequence[int], b: Sequence[int]) -> float:
    """The longest common subsequence of two word sequences, as a share of the longer one.

    With `k` of `n` words replaced or dropped it is (n - k) / n; with `k` inserted n / (n + k).
    """
    return float(LCSseq.normalized_similarity(a, b))


def common_words(a: Sequence[int], b: Sequence[int], at_least: int = 0) -> int:
    """Length of the longest common subsequence; 0 where it is shorter than `at_least`."""
    return int(LCSseq.similarity(a, b, score_cutoff=at_least))
