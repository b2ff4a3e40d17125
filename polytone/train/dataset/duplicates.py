"""Copies: rows that are the same, or nearly, within a file, between files, and with held-out rows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from polytone.contract.rows import Conversation

from .overlap import Texts, common_words, number_words, similarity
from .templates import Kinship

# At most a fifth of the words may differ: 15 % edited words, rounded up in short turns.
SIMILAR = 0.8
SHORTEST = 7  # words; in less, one word more or less is another thing to say
COMMON = 400  # shingles in more rows than this tell little about who copied whom
ENOUGH = 16  # shingles that a row keeps at least
BANDS, BAND_ROWS = 128, 3

Shingle = tuple[int, ...]


@dataclass(frozen=True)
class Copy:
    """Row `row` is a copy of row `of`; `similarity` is 1 where all words are the same."""

    row: int
    of: int
    similarity: float
    exact: bool


@dataclass(frozen=True)
class Copies:
    """`within`: rows that repeat an earlier one. `leaked`: rows that held-out ones repeat (`of` counts there)."""

    within: list[Copy]
    leaked: list[Copy]


def find_copies(rows: Sequence[Conversation], held_out: Sequence[Conversation]) -> Copies:
    """Find the copies among `rows`, and between `rows` and `held_out`.

    Candidates come from MinHash over a row's rarer shingles (Broder 1997, banded as by Leskovec et al. 2014); every
    candidate is then compared word by word. The most similar pairs are joined first, and groups only where nothing
    in them is different on purpose (see Kinship).
    """
    both = [*rows, *held_out]
    first_of = fold(both)
    firsts = sorted(set(first_of))
    texts = number_words([both[first].messages for first in firsts])
    groups = join([both[first] for first in firsts], texts)
    group_of = dict(zip(firsts, groups, strict=True))
    members: dict[int, list[int]] = {}
    for index, first in enumerate(first_of):
        members.setdefault(group_of[first], []).append(index)
    bodies = dict(zip(firsts, texts.bodies, strict=True))
    within: list[Copy] = []
    leaked: list[Copy] = []
    for group in members.values():
        ours, theirs = [i for i in group if i < len(rows)], [i for i in group if i >= len(rows)]
        within.extend(compare(i, ours[:1], first_of, bodies) for i in ours[1:])
        leaked.extend(compare(i, theirs, first_of, bodies) for i in ours if theirs)
    shifted = [Copy(one.row, one.of - len(rows), one.similarity, one.exact) for one in leaked]
    return Copies(sorted(within, key=row_of), sorted(shifted, key=row_of))


def row_of(copy: Copy) -> int:
    return copy.row


def compare(row: int, others: list[int], first_of: list[int], bodies: dict[int, list[int]]) -> Copy:
    """The row and the most similar of the others."""
    alike = {other: similarity(bodies[first_of[row]], bodies[first_of[other]]) for other in others}
    same = [other for other in others if first_of[other] == first_of[row]]
    best = same[0] if same else max(others, key=lambda other: alike[other])
    return Copy(row, best, alike[best], bool(same))


def fold(rows: Sequence[Conversation]) -> list[int]:
    """For every row the first one with the same turns, blanks apart."""
    seen: dict[tuple[tuple[str, str], ...], int] = {}
    return [
        seen.setdefault(tuple((turn.role, " ".join(turn.content.split())) for turn in row.messages), index)
        for index, row in enumerate(rows)
    ]


def join(rows: Sequence[Conversation], texts: Texts) -> list[int]:
    """For every row a number of its group: rows that are nearly the same."""
    prompts = [row.messages[0].content if row.messages[0].role == "system" else "" for row in rows]
    kinship = Kinship(texts, prompts)
    group_of = list(range(len(rows)))
    members = {index: [index] for index in group_of}
    for _, a, b in sorted(pairs(texts, kinship), reverse=True):
        one, other = group_of[a], group_of[b]
        if one == other or any(kinship.different(i, j) for i in members[one] for j in members[other]):
            continue
        for index in members[other]:
            group_of[index] = one
        members[one].extend(members.pop(other))
    return group_of


def pairs(texts: Texts, kinship: Kinship) -> Iterator[tuple[float, int, int]]:
    """Pairs of rows that are nearly the same, with their similarity."""
    words = [frozenset(body) for body in texts.bodies]
    for row, others in enumerate(candidates(texts.bodies)):
        body, mine = texts.bodies[row], words[row]
        for other in others:
            if other >= row:
                continue
            theirs = texts.bodies[other]
            longer = max(len(body), len(theirs))
            least = longer if longer < SHORTEST else SIMILAR * longer
            # Words that only one has are missing from any common sequence: a bound that costs little.
            if len(body) - len(mine - words[other]) < least or len(theirs) - len(words[other] - mine) < least:
                continue
            if kinship.different(row, other) or (common := common_words(body, theirs)) < least:
                continue
            if all(map(resembles, texts.sides[row], texts.sides[other])):
                yield common / longer, row, other


def resembles(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether what was asked, or said, is alike on its own: one long answer may fit many short questions."""
    longer = max(len(a), len(b))
    return common_words(a, b) >= longer - max(1, longer // 2)


def candidates(bodies: Sequence[Sequence[int]]) -> list[list[int]]:
    """For every row those that may be alike (itself among them)."""
    from rensa import RMinHash, RMinHashLSH

    sketches = RMinHash.from_token_sets(shingles(bodies), num_perm=BANDS * BAND_ROWS, seed=0)
    index = RMinHashLSH(threshold=SIMILAR, num_perm=BANDS * BAND_ROWS, num_bands=BANDS)
    index.insert_many(sketches)
    found: list[list[int]] = index.query_all(sketches)
    return found


def shingles(bodies: Sequence[Sequence[int]]) -> list[list[str]]:
    """A row's words, and pairs of words next to each other or one apart, that other rows have too, but not many."""
    all_of: list[set[Shingle]] = [
        {*((word,) for word in body), *pairwise(body), *((a, -1, b) for a, b in zip(body, body[2:], strict=False))}
        for body in bodies
    ]
    counts = Counter(shingle for row in all_of for shingle in row)
    return [[repr(shingle) for shingle in telling(row, counts)] or [repr(bodies[i])] for i, row in enumerate(all_of)]


def telling(row: set[Shingle], counts: Counter[Shingle]) -> list[Shingle]:
    shared = [shingle for shingle in row if counts[shingle] > 1]
    rare = [shingle for shingle in shared if counts[shingle] <= COMMON]
    return rare if len(rare) >= ENOUGH else sorted(shared, key=lambda shingle: (counts[shingle], shingle))[:ENOUGH]
