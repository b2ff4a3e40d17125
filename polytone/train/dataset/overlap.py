"""Rows as sequences of words, and how many words two of them have in common in the same order."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polytone.contract.rows import Message

# A word is what stands between spaces, without the marks around it; scripts without spaces are taken by the letter.
UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}](?:[^\s{UNSPACED}]*[^\W_{UNSPACED}])?")
TURNS = {"<user>": 0, "<assistant>": 1, "<tool>": 2}
END, MARKS = 3, 4  # numbers below MARKS are no words
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Texts:
    """Every row's words as numbers.

    `bodies` holds a row's words without its system prompt; `sides` the same in two, what was asked and what the
    assistant said; `marked` with a mark before every turn and marks around the row, so that what begins and ends a turn
    has surroundings too; `numbers` those words that have a digit. Words are numbered from `MARKS` to `size` - 1.
    """

    bodies: list[list[int]]
    sides: list[tuple[list[int], list[int]]]
    marked: list[list[int]]
    numbers: list[frozenset[int]]
    size: int


def split_words(text: str) -> list[str]:
    """The words of a text in lower case, without the punctuation around them."""
    return WORD.findall(text.casefold())


def number_words(rows: Sequence[Sequence[Message]]) -> Texts:
    """Number the words of conversations, the same word alike everywhere."""
    ids = {**TURNS, "<end>": END}
    bodies, sides, marked, figures = [], [], [], []
    for messages in rows:
        body: list[int] = []
        mark: list[int] = [END]
        side: tuple[list[int], list[int]] = ([], [])
        numbers: set[int] = set()
        for message in messages:
            if message.role == "system":
                continue
            words = split_words(message.content)
            found = [ids.setdefault(word, len(ids)) for word in words]
            numbers.update(number for number, word in zip(found, words, strict=True) if has_digit(word))
            body.extend(found)
            side[message.role == "assistant"].extend(found)
            mark.extend([ids[f"<{message.role}>"], *found])
        bodies.append(body)
        sides.append(side)
        marked.append([*mark, END, END])
        figures.append(frozenset(numbers))
    return Texts(bodies, sides, marked, figures, len(ids))


def has_digit(word: str) -> bool:
    return not word.isalpha() and any(letter.isdigit() for letter in word)


def similarity(a: Sequence[int], b: Sequence[int]) -> float:
    """The longest common subsequence of two word sequences, as a share of the longer one.

    With `k` of `n` words replaced or dropped it is (n - k) / n; with `k` inserted n / (n + k).
    """
    longer = max(len(a), len(b))
    return common_words(a, b) / longer if longer else 1.0


def common_words(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common subsequence, bit-parallel in one integer (Hyyrö 2004)."""
    places: dict[int, int] = {}
    for position, word in enumerate(a):
        places[word] = places.get(word, 0) | (1 << position)
    everything = (1 << len(a)) - 1
    state = everything
    for word in b:
        matched = state & places.get(word, 0)
        state = ((state + matched) | (state - matched)) & everything
    return len(a) - state.bit_count()
