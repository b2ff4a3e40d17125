"""How two versions stand against each other after some votes, and how sure that is."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

from polytone.ui.markup import Safe, joined, listing, paragraph, table

NORMAL_95 = 1.959964
NONE_YET = "No votes yet. Compare two voices, and vote for the better answer."
HEADERS = ("Version", "Against", "Won", "Lost", "Tie", "Both bad", "Win rate", "95 % interval")
CAPTION = (
    "Ties and votes for both bad count for neither side: the win rate is of the decided votes. The interval (Wilson) "
    "is for a number of prompts set beforehand; who stops at the first difference finds one too often."
)


@dataclass(frozen=True)
class Vote:
    """A vote on the answers of two versions: `choice` is a, b, tie or both_bad."""

    a: str
    b: str
    choice: str
    blind: bool = True


@dataclass(frozen=True)
class Tally:
    """The votes on a pair of versions, blind or not, as `first` sees them."""

    first: str
    second: str
    blind: bool
    won: int = 0
    lost: int = 0
    ties: int = 0
    both_bad: int = 0

    @property
    def decided(self) -> int:
        return self.won + self.lost

    def with_vote(self, vote: Vote) -> "Tally":
        counts = [self.won, self.lost, self.ties, self.both_bad]
        mine, theirs = ("a", "b") if vote.a == self.first else ("b", "a")
        counts[[mine, theirs, "tie", "both_bad"].index(vote.choice)] += 1
        return Tally(self.first, self.second, self.blind, *counts)


def win_rate(votes: Iterable[Vote]) -> Safe:
    """A table of the pairs, and a sentence for each."""
    found = tallies(votes)
    if not found:
        return paragraph(NONE_YET, "hint")
    rows = table("Votes in this session", HEADERS, map(row, found))
    return joined(rows, listing(map(sentence, found)), paragraph(CAPTION, "hint"))


def tallies(votes: Iterable[Vote]) -> list[Tally]:
    """Every pair once, whichever was chosen first; a version against itself says nothing and is left out."""
    found: dict[tuple[frozenset[str], bool], Tally] = {}
    for vote in votes:
        if vote.a == vote.b:
            continue
        pair = (frozenset({vote.a, vote.b}), vote.blind)
        found[pair] = found.get(pair, Tally(vote.a, vote.b, vote.blind)).with_vote(vote)
    return list(found.values())


def row(tally: Tally) -> tuple[object, ...]:
    against = tally.second if tally.blind else f"{tally.second} (names shown)"
    counts = (tally.won, tally.lost, tally.ties, tally.both_bad)
    if not tally.decided:
        return (tally.first, against, *counts, "none", "none")
    low, high = wilson(tally.won, tally.decided)
    rate = f"{percent(tally.won / tally.decided)} %"
    return (tally.first, against, *counts, rate, f"{percent(low)}-{percent(high)} %")


def sentence(tally: Tally) -> str:
    """Who is ahead, by how much, and whether that tells the two apart."""
    ahead, behind, won = tally.first, tally.second, tally.won
    if tally.lost > tally.won:
        ahead, behind, won = behind, ahead, tally.lost
    if not tally.decided:
        return f"{ahead} and {behind}: no vote has decided between them yet."
    low, high = wilson(won, tally.decided)
    apart = "that tells them apart" if low > 0.5 else "that does not tell them apart yet"
    return (
        f"{ahead} won {won} of {tally.decided} decided against {behind}, "
        f"95 % interval {percent(low)}-{percent(high)} %; {apart}."
    )


def wilson(won: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson's score: it holds for few votes, and at none and all."""
    share, square = won / of, NORMAL_95**2
    middle = share + square / (2 * of)
    half = NORMAL_95 * sqrt(share * (1 - share) / of + square / (4 * of**2))
    return max((middle - half) / (1 + square / of), 0.0), min((middle + half) / (1 + square / of), 1.0)


def percent(share: float) -> int:
    return round(100 * share)
