"""Copies: rows that are the same, or nearly, within a file, between files, and with held-out rows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from polytone.contract.rows import Conversation

from .overlap import EncodedRows, common_words, encode_rows, similarity
from .templates import Templates

# At most a fifth of the words may differ: 15 % edited words, rounded up in short turns.
SIMILAR = 0.8
SHORTEST = 7  # words; in fewer, one word more or less changes what is said
MOST_ROWS = 400  # shingles in more rows than this say little about who copied whom
FEWEST_SHINGLES = 16  # kept of every row
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
    """`within`: rows that repeat an earlier one. `leaked`: rows that held-out rows repeat; `of` is an index there."""

    within: list[Copy]
    leaked: list[Copy]


@dataclass(frozen=True)
class Clusters:
    """Rows grouped with their copies.

    `first_of` has for every row the first one with the same turns, `bodies` the word ids of those first rows, and
    `members` every cluster's rows in ascending order.
    """

    first_of: list[int]
    bodies: dict[int, list[int]]
    members: list[list[int]]

    def copy(self, row: int, others: Sequence[int]) -> Copy:
        """`row` as a copy of the most similar of the others."""
        body = self.bodies[self.first_of[row]]
        alike = {other: similarity(body, self.bodies[self.first_of[other]]) for other in others}
        exact = [other for other in others if self.first_of[other] == self.first_of[row]]
        best = exact[0] if exact else max(others, key=lambda other: alike[other])
        return Copy(row, best, alike[best], bool(exact))


def find_copies(rows: Sequence[Conversation], held_out: Sequence[Conversation]) -> Copies:
    """Find the copies among `rows`, and between `rows` and `held_out`."""
    clusters = find_clusters([*rows, *held_out])
    within: list[Copy] = []
    leaked: list[Copy] = []
    for members in clusters.members:
        ours, theirs = [i for i in members if i < len(rows)], [i for i in members if i >= len(rows)]
        within.extend(clusters.copy(i, ours[:1]) for i in ours[1:])
        leaked.extend(clusters.copy(i, theirs) for i in ours if theirs)
    shifted = [Copy(one.row, one.of - len(rows), one.similarity, one.exact) for one in leaked]
    return Copies(sorted(within, key=row_of), sorted(shifted, key=row_of))


def row_of(copy: Copy) -> int:
    return copy.row


def find_clusters(rows: Sequence[Conversation]) -> Clusters:
    """Put every row into a cluster with its copies.

    Candidates come from MinHash over a row's rarer shingles (Broder 1997, banded as by Leskovec et al. 2014); every
    candidate is then compared word by word. The most similar pairs are joined first, and two clusters only where no two
    of their rows are distinct by their template (see Templates).
    """
    first_of = first_with_same_turns(rows)
    firsts = sorted(set(first_of))
    encoded = encode_rows([rows[first].messages for first in firsts])
    cluster_of = dict(zip(firsts, join([rows[first] for first in firsts], encoded), strict=True))
    members: dict[int, list[int]] = {}
    for index, first in enumerate(first_of):
        members.setdefault(cluster_of[first], []).append(index)
    return Clusters(first_of, dict(zip(firsts, encoded.bodies, strict=True)), list(members.values()))


def first_with_same_turns(rows: Sequence[Conversation]) -> list[int]:
    """For every row the first one with the same turns, white space apart."""
    firsts: dict[tuple[tuple[str, str], ...], int] = {}
    return [
        firsts.setdefault(tuple((turn.role, " ".join(turn.content.split())) for turn in row.messages), index)
        for index, row in enumerate(rows)
    ]


def join(rows: Sequence[Conversation], encoded: EncodedRows) -> list[int]:
    """For every row the number of its cluster: rows that are nearly the same."""
    prompts = [row.messages[0].content if row.messages[0].role == "system" else "" for row in rows]
    templates = Templates(encoded, prompts)
    cluster_of = list(range(len(rows)))
    members = {index: [index] for index in cluster_of}
    for _, a, b in sorted(similar_pairs(encoded, templates), reverse=True):
        one, other = cluster_of[a], cluster_of[b]
        if one == other or any(templates.distinct(i, j) for i in members[one] for j in members[other]):
            continue
        for index in members[other]:
            cluster_of[index] = one
        members[one].extend(members.pop(other))
    return cluster_of


def similar_pairs(encoded: EncodedRows, templates: Templates) -> Iterator[tuple[float, int, int]]:
    """Pairs of rows that are nearly the same, with their similarity."""
    for row, others in enumerate(candidates(encoded.bodies)):
        body = encoded.bodies[row]
        for other in others:
            if other >= row:
                continue
            longer = max(len(body), len(encoded.bodies[other]))
            least = longer if longer < SHORTEST else SIMILAR * longer
            common = common_words(body, encoded.bodies[other], at_least=int(least))
            if common < least or templates.distinct(row, other):
                continue
            if all(map(resembles, encoded.sides[row], encoded.sides[other])):
                yield common / longer, row, other


def resembles(a: Sequence[int], b: Sequence[int]) -> bool:
    """True if two prompts, or two replies, are alike on their own: one long reply may fit many short questions."""
    longer = max(len(a), len(b))
    return common_words(a, b) >= longer - max(1, longer // 2)


def candidates(bodies: Sequence[Sequence[int]]) -> list[list[int]]:
    """For every row the rows that may be similar, itself among them."""
    from rensa import RMinHash, RMinHashLSH

    sketches = RMinHash.from_token_sets(shingles(bodies), num_perm=BANDS * BAND_ROWS, seed=0)
    index = RMinHashLSH(threshold=SIMILAR, num_perm=BANDS * BAND_ROWS, num_bands=BANDS)
    index.insert_many(sketches)
    similar: list[list[int]] = index.query_all(sketches)
    return similar


def shingles(bodies: Sequence[Sequence[int]]) -> list[list[str]]:
    """A row's words, and pairs of words next to each other or one apart, that some other rows have too."""
    sets: list[set[Shingle]] = [
        {*((word,) for word in body), *pairwise(body), *((a, -1, b) for a, b in zip(body, body[2:], strict=False))}
        for body in bodies
    ]
    counts = Counter(shingle for row in sets for shingle in row)
    return [[repr(shingle) for shingle in rarest(row, counts)] or [repr(bodies[i])] for i, row in enumerate(sets)]


def rarest(row: set[Shingle], counts: Counter[Shingle]) -> list[Shingle]:
    shared = [shingle for shingle in row if counts[shingle] > 1]
    rare = [shingle for shingle in shared if counts[shingle] <= MOST_ROWS]
    if len(rare) >= FEWEST_SHINGLES:
        return rare
    return sorted(shared, key=lambda shingle: (counts[shingle], shingle))[:FEWEST_SHINGLES]
