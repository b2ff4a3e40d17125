"""Rows written from the same template, which are not copies of each other.

"My kettle is late" and "My lamp is late" are two questions, though most of their words are the same. An edited copy
differs from its original in words that are rare in their place; two rows of a template differ in words that many rows
have there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .overlap import END, MARKS, EncodedRows, Ids

# The context of a word: two of its neighbours, by their distance. Distant ones see past a neighbour that varies too.
AROUND = ((-1, 1), (-2, 1), (-1, 2))
BEFORE = ((-2, -1), (-3, -2))
AFTER = ((1, 2), (2, 3))
REACH = 3
AMBIGUOUS = -1  # the same context twice in a row, with different words
LONGEST_PHRASE = 10  # words that may differ in one place: a product's name, a sentence that only some rows have
# A word is established in a context if it is seen there more often than edits would explain: with 5 % of the rows
# edited in 15 % of their words, under 1 % of all words are edits, and only some of these are the same word.
ESTABLISHED, EDIT_SHARE = 3, 0.005

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Slots:
    """A row's slots: contexts in which several words are established.

    `around` maps a context to the row's word in it; `before` and `after` map it to that word and its position.
    """

    around: dict[int, int]
    before: dict[int, tuple[int, int]]
    after: dict[int, tuple[int, int]]


class Templates:
    """Tells two rows of one template from two copies.

    Rows are distinct if their system prompts differ and `ESTABLISHED` rows have each of them, or if at least half of
    the words in which they differ are alternatives: numbers (two orders, two prices), or words established in the same
    context.
    """

    def __init__(self, rows: EncodedRows, prompts: Sequence[str]) -> None:
        self._numbers = rows.numbers
        self._marked = rows.marked
        self._words_of = [frozenset(body) for body in rows.bodies]
        self._prompts = frequent_prompts(prompts)
        self._starts = np.cumsum([0, *(len(row) for row in rows.marked)])
        words = np.array([END] * REACH + [word for row in rows.marked for word in row] + [END] * REACH, dtype=np.int64)
        self._words = words[REACH:-REACH]
        self._contexts = {pattern: slot_contexts(words, pattern, rows.size) for pattern in (*AROUND, *BEFORE, *AFTER)}
        self._slots: dict[int, Slots] = {}

    def distinct(self, a: int, b: int) -> bool:
        """True if rows `a` and `b` differ on purpose."""
        if self._prompts[a] and self._prompts[b] and self._prompts[a] != self._prompts[b]:
            return True
        differing = self._words_of[a] ^ self._words_of[b]
        ours, theirs = self._numbers[a], self._numbers[b]
        alternatives = set(ours ^ theirs) if ours - theirs and theirs - ours else set()
        if covers_half(alternatives, differing):
            return True
        first, second = self._slots_of(a), self._slots_of(b)
        for context in first.around.keys() & second.around.keys():
            if first.around[context] != second.around[context]:
                alternatives |= {first.around[context], second.around[context]}
        if not covers_half(alternatives, differing):  # phrases cost more, so they come last
            alternatives |= self._phrases(first, second, self._marked[a], self._marked[b])
        return covers_half(alternatives, differing)

    def _phrases(self, first: Slots, second: Slots, a: list[int], b: list[int]) -> set[int]:
        """The words between a context before and one after that both rows have, with different words in between."""
        ends = disagreements(first.after, second.after)
        words: set[int] = set()
        for i, j in disagreements(first.before, second.before) if ends else ():
            for k, n in ends:
                if i - 1 <= k < i + LONGEST_PHRASE and j - 1 <= n < j + LONGEST_PHRASE:  # one of them may be empty
                    words.update(a[i : k + 1], b[j : n + 1])
        return words

    def _slots_of(self, row: int) -> Slots:
        if row not in self._slots:
            around = self._words_in_slots(row, AROUND)
            self._slots[row] = Slots(
                {context: word for context, (word, _) in around.items()},
                self._words_in_slots(row, BEFORE),
                self._words_in_slots(row, AFTER),
            )
        return self._slots[row]

    def _words_in_slots(self, row: int, patterns: Sequence[tuple[int, int]]) -> dict[int, tuple[int, int]]:
        """Context -> the row's word in it and its position; contexts with two different words are left out."""
        start, end = self._starts[row], self._starts[row + 1]
        slots: dict[int, tuple[int, int]] = {}
        for number, pattern in enumerate(patterns):
            contexts = self._contexts[pattern][start:end]
            positions = np.flatnonzero(contexts >= 0)
            words = self._words[start:end][positions]
            keys = contexts[positions] * len(patterns) + number
            for key, word, position in zip(keys.tolist(), words.tolist(), positions.tolist(), strict=True):
                same = slots.get(key, (word, 0))[0] == word
                slots[key] = (word if same else AMBIGUOUS, position)
        return {key: slot for key, slot in slots.items() if slot[0] != AMBIGUOUS}


def frequent_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts, with "" for those that fewer than `ESTABLISHED` rows have: such a one may be an edit."""
    counts: dict[str, int] = {}
    for prompt in prompts:
        counts[prompt] = counts.get(prompt, 0) + 1
    return [prompt if counts[prompt] >= ESTABLISHED else "" for prompt in prompts]


def slot_contexts(words: Ids, pattern: tuple[int, int], size: int) -> Ids:
    """For every word but the `REACH` at either end its context as a number, or -1 where the context is no slot.

    A context is a slot for a word that is established in it beside at least one other. A mark, where a turn begins or
    ends, may fill a slot of a phrase only, not of a single word.
    """
    first, second = (words[REACH + distance : len(words) - REACH + distance] for distance in pattern)
    middle = words[REACH:-REACH]
    contexts = first * size + second
    codes, which, counts = np.unique(contexts * size + middle, return_inverse=True, return_counts=True)
    distinct_contexts, context_of = np.unique(codes // size, return_inverse=True)
    seen: Counts = np.bincount(context_of, counts).astype(np.float64)[context_of]
    established = (counts >= least_count(seen)) & ((codes % size >= MARKS) | (pattern not in AROUND))
    several = np.bincount(context_of, established, len(distinct_contexts))[context_of] >= 2
    return np.where((established & several)[which], contexts, -1)


def least_count(seen: Counts) -> Counts:
    """How often a word must occur in a context seen `seen` times: two deviations above what edits explain."""
    edits = EDIT_SHARE * seen
    least: Counts = np.maximum(ESTABLISHED, edits + 2 * np.sqrt(edits))
    return least


def covers_half(alternatives: set[int], differing: frozenset[int]) -> bool:
    return bool(alternatives) and 2 * len(alternatives & differing) >= len(differing)


def disagreements(a: dict[int, tuple[int, int]], b: dict[int, tuple[int, int]]) -> list[tuple[int, int]]:
    """Positions, in either row, of different words in the same context."""
    return [(a[key][1], b[key][1]) for key in a.keys() & b.keys() if a[key][0] != b[key][0]]
