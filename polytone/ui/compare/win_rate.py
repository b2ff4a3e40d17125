"""Win rates of versions against each other, with intervals."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

from ..markup import Html, joined, listing, paragraph, table
from ..wording import counted

NORMAL_95 = 1.959964
NONE_YET = "No votes yet. Compare two voices and vote for the better answer."
HEADERS = ("Version", "Against", "Won", "Lost", "Tie", "Both bad", "Win rate", "95 % interval")
CAPTION = (
    'The win rate counts decided votes only, without ties and "both bad". The interval (Wilson) assumes that you chose '
    "the number of prompts beforehand; stopping at the first difference finds one too often."
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
    """The votes on a pair of versions, blind or not, counted for `first`."""

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


def win_rate_panel(votes: Iterable[Vote]) -> Html:
    """A table of all pairs, and a sentence for each."""
    counts = tallies(votes)
    if not counts:
        return paragraph(NONE_YET, "hint")
    rows = table("Votes in this session", HEADERS, map(row, counts))
    return joined(rows, listing(map(sentence, counts)), paragraph(CAPTION, "hint"))


def tallies(votes: Iterable[Vote]) -> list[Tally]:
    """Every pair once, in whichever order it was chosen; a version against itself is left out."""
    by_pair: dict[tuple[frozenset[str], bool], Tally] = {}
    for vote in votes:
        if vote.a == vote.b:
            continue
        pair = (frozenset({vote.a, vote.b}), vote.blind)
        by_pair[pair] = by_pair.get(pair, Tally(vote.a, vote.b, vote.blind)).with_vote(vote)
    return list(by_pair.values())


def row(tally: Tally) -> tuple[object, ...]:
    against = tally.second if tally.blind else f"{tally.second} (names shown)"
    counts = (tally.won, tally.lost, tally.ties, tally.both_bad)
    if not tally.decided:
        return (tally.first, against, *counts, "none", "none")
    low, high = wilson(tally.won, tally.decided)
    rate = f"{100 * tally.won / tally.decided:.0f} %"
    return (tally.first, against, *counts, rate, interval(low, high))


def sentence(tally: Tally) -> str:
    """The version that is ahead, by how much, and if the votes are enough to tell the two apart."""
    ahead, behind, won = tally.first, tally.second, tally.won
    if tally.lost > tally.won:
        ahead, behind, won = behind, ahead, tally.lost
    if not tally.decided:
        return f"{ahead} and {behind}: no decided vote yet."
    low, high = wilson(won, tally.decided)
    clear = "a clear difference" if low > 0.5 else "not a clear difference yet"
    return (
        f"{ahead} won {won} of {counted(tally.decided, 'decided vote')} against {behind}, "
        f"95 % interval {interval(low, high)}: {clear}."
    )


def wilson(won: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score, which holds for few votes and for shares of 0 and 1."""
    share, square = won / of, NORMAL_95**2
    middle = share + square / (2 * of)
    half = NORMAL_95 * sqrt(share * (1 - share) / of + square / (4 * of**2))
    return max((middle - half) / (1 + square / of), 0.0), min((middle + half) / (1 + square / of), 1.0)


def interval(low: float, high: float) -> str:
    return f"{100 * low:.0f}-{100 * high:.0f} %"
