"""What tells two rows of the same mould apart, so that they are not taken for copies of each other.

Support conversations resemble each other honestly: "My kettle is late" and "My lamp is late" are two questions.
An edit leaves a word where it is hardly ever seen; two honest rows differ in words that are both at home there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .overlap import END, MARKS, Ids, Texts

# Surroundings of a word: two of its neighbours, by their distance. Further ones see past a neighbour that varies too.
AROUND = ((-1, 1), (-2, 1), (-1, 2))
BEFORE = ((-2, -1), (-3, -2))
AFTER = ((1, 2), (2, 3))
REACH = 3
AMBIGUOUS = -1  # the same surroundings twice in a row, with different words
LONGEST = 10  # words that may differ in one place: the name of a product, a sentence that some rows have
# A word is at home where it is seen more often than edits would put it there: 5 % of the rows edited in 15 % of
# their words is under 1 % of all words, a part of which falls on the same one.
AT_HOME, STRAY = 3, 0.005

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Choices:
    """Surroundings of a row that lead to different words at home -> the row's word there, or its word and position."""

    around: dict[int, int]
    before: dict[int, tuple[int, int]]
    after: dict[int, tuple[int, int]]


class Kinship:
    """Says of two rows whether they are different on purpose.

    They are where their system prompts differ and each is one that `AT_HOME` rows have, and where at least half of the
    words in which they differ are alternatives: numbers (two orders, two prices), or words that stand in one row where
    the other has another one, both at home.
    """

    def __init__(self, texts: Texts, prompts: Sequence[str]) -> None:
        self._numbers = texts.numbers
        self._marked = texts.marked
        self._words_of = [frozenset(body) for body in texts.bodies]
        self._prompts = frequent_prompts(prompts)
        self._starts = np.cumsum([0, *(len(row) for row in texts.marked)])
        words = np.array([END] * REACH + [word for row in texts.marked for word in row] + [END] * REACH, dtype=np.int64)
        self._words = words[REACH:-REACH]
        self._found = {pattern: choices(words, pattern, texts.size) for pattern in (*AROUND, *BEFORE, *AFTER)}
        self._choices: dict[int, Choices] = {}

    def different(self, a: int, b: int) -> bool:
        if self._prompts[a] and self._prompts[b] and self._prompts[a] != self._prompts[b]:
            return True
        apart = self._words_of[a] ^ self._words_of[b]
        ours, theirs = self._numbers[a], self._numbers[b]
        explained = set(ours ^ theirs) if ours - theirs and theirs - ours else set()
        if enough(explained, apart):
            return True
        first, second = self._choices_of(a), self._choices_of(b)
        for key in first.around.keys() & second.around.keys():
            if first.around[key] != second.around[key]:
                explained |= {first.around[key], second.around[key]}
        if not enough(explained, apart):  # what costs more, only where it may decide
            explained |= self._phrases(a, b)
        return enough(explained, apart)

    def _phrases(self, a: int, b: int) -> set[int]:
        """The words between surroundings that both rows have, before and after, where these lead to different ones."""
        first, second = self._choices_of(a), self._choices_of(b)
        ends = disagreements(first.after, second.after)
        found: set[int] = set()
        for i, j in disagreements(first.before, second.before) if ends else ():
            for k, n in ends:
                if i - 1 <= k < i + LONGEST and j - 1 <= n < j + LONGEST:  # nothing may stand there, too
                    found.update(self._marked[a][i : k + 1], self._marked[b][j : n + 1])
        return found

    def _choices_of(self, row: int) -> Choices:
        if row not in self._choices:
            around = self._of(row, AROUND)
            self._choices[row] = Choices(
                {key: word for key, (word, _) in around.items()}, self._of(row, BEFORE), self._of(row, AFTER)
            )
        return self._choices[row]

    def _of(self, row: int, patterns: Sequence[tuple[int, int]]) -> dict[int, tuple[int, int]]:
        start, end = self._starts[row], self._starts[row + 1]
        found: dict[int, tuple[int, int]] = {}
        for number, pattern in enumerate(patterns):
            surroundings = self._found[pattern][start:end]
            places = np.flatnonzero(surroundings >= 0)
            words = self._words[start:end][places]
            keys = surroundings[places] * len(patterns) + number
            for key, word, place in zip(keys.tolist(), words.tolist(), places.tolist(), strict=True):
                found[key] = (AMBIGUOUS, place) if found.get(key, (word, 0))[0] != word else (word, place)
        return {key: there for key, there in found.items() if there[0] != AMBIGUOUS}


def frequent_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts with those taken out that fewer than `AT_HOME` rows have: such a one may be an edit."""
    seen: dict[str, int] = {}
    for prompt in prompts:
        seen[prompt] = seen.get(prompt, 0) + 1
    return [prompt if seen[prompt] >= AT_HOME else "" for prompt in prompts]


def choices(words: Ids, pattern: tuple[int, int], size: int) -> Ids:
    """For every word but the `REACH` at either end its surroundings as a number, or -1.

    A number stands where the word is at home in its surroundings, and so is at least one other. Turns may
    begin or end there only where phrases are looked at: around a single word stands a word.
    """
    first, second = (words[REACH + distance : len(words) - REACH + distance] for distance in pattern)
    middle = words[REACH:-REACH]
    surroundings = first * size + second
    codes, which, counts = np.unique(surroundings * size + middle, return_inverse=True, return_counts=True)
    seen_in, place = np.unique(codes // size, return_inverse=True)
    seen: Counts = np.bincount(place, counts).astype(np.float64)[place]
    home = (counts >= at_home(seen)) & ((codes % size >= MARKS) | (pattern not in AROUND))
    several = np.bincount(place, home, len(seen_in))[place] >= 2
    return np.where((home & several)[which], surroundings, -1)


def at_home(seen: Counts) -> Counts:
    """How often a word must stand in surroundings that are seen so often: above the strays, and two deviations more."""
    strays = STRAY * seen
    least: Counts = np.maximum(AT_HOME, strays + 2 * np.sqrt(strays))
    return least


def enough(explained: set[int], apart: frozenset[int]) -> bool:
    return bool(explained) and 2 * len(explained & apart) >= len(apart)


def disagreements(a: dict[int, tuple[int, int]], b: dict[int, tuple[int, int]]) -> list[tuple[int, int]]:
    """Positions, in either row, of different words in the same surroundings."""
    return [(a[key][1], b[key][1]) for key in a.keys() & b.keys() if a[key][0] != b[key][0]]
