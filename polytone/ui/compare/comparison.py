"""A comparison: one prompt, answers of several models and a vote; and a session of comparisons."""

from dataclasses import dataclass, replace
from typing import Any

from ..shell import annotator
from ..thread import Turn
from .blind import PLACES, Order, choice_of, shown_left
from .prompts import Prompt
from .win_rate import Vote

VOTE_WORDS = {
    "a": "you preferred A",
    "b": "you preferred B",
    "tie": "you found them equal",
    "both_bad": "you found both bad",
}


@dataclass(frozen=True)
class Comparison:
    """`models` and `answers` are in the order chosen; `order[place]` is the number of the one shown there.

    `vote` is for a place: a is the left, b the right.
    """

    id: str
    prompt: Prompt
    models: tuple[str, ...]
    order: Order
    blind: bool
    answers: tuple[Turn, ...]
    over: bool = False
    vote: str | None = None

    @property
    def votable(self) -> bool:
        """Two complete answers, and no vote yet."""
        return self.over and len(self.answers) == 2 and self.vote is None and all(map(is_whole, self.answers))

    @property
    def named(self) -> bool:
        """True if names may be shown: always unless blind; then after the vote, or when none is possible."""
        return not self.blind or (self.over and not self.votable)

    def at(self, place: int) -> Turn:
        return self.answers[self.order[place]]

    def preference(self, vote: str, tester: str | None) -> dict[str, Any]:
        """The vote as POST /v1/feedback takes it: `a` is always the model that was chosen first."""
        first, second = self.answers
        pair = {"a": first.completion_id, "b": second.completion_id}
        return {
            "key": "preference",
            "pair": {**pair, "shown": shown_left(self.order), "blind": self.blind},
            "value": choice_of(vote, self.order),
            "annotator": annotator(tester),
            "idempotency_key": self.id,
        }


@dataclass(frozen=True)
class Session:
    """A tester's comparisons: `asked` prompts of the set were asked; `due` if the next one should follow."""

    prompts: tuple[Prompt, ...] = ()
    asked: int = 0
    comparison: Comparison | None = None
    votes: tuple[Vote, ...] = ()
    notice: str = ""
    due: bool = False

    def showing(self, comparison: Comparison) -> "Session":
        return replace(self, comparison=comparison, due=False)

    def voted(self, vote: str) -> "Session":
        """With a vote on the current comparison, which the server has accepted."""
        comparison = self.comparison
        if comparison is None or not comparison.votable:
            return self
        versions = [version_of(answer) for answer in comparison.answers]
        counted = Vote(versions[0], versions[1], choice_of(vote, comparison.order), comparison.blind)
        return replace(
            self,
            comparison=replace(comparison, vote=vote),
            votes=(*self.votes, counted),
            notice=revealed(comparison, vote),
            due=self.asked < len(self.prompts),
        )

    @property
    def progress(self) -> str:
        """The progress in the set, in words; empty without a set."""
        if not self.prompts:
            return ""
        if self.asked == len(self.prompts) and self.comparison and self.comparison.over and not self.comparison.votable:
            return f"All {len(self.prompts)} prompts are done."
        return f"{self.asked} of {len(self.prompts)}"


def is_whole(answer: Turn) -> bool:
    """True for a complete answer with the id that a vote needs."""
    details = answer.details
    ended = details.get("usage") or details.get("finish") not in (None, "stopped", "error")
    return bool(answer.completion_id and ended) and not details.get("error") and not details.get("under_way")


def version_of(answer: Turn) -> str:
    return str(answer.details.get("version") or answer.details.get("model") or "unknown")


def revealed(comparison: Comparison, vote: str) -> str:
    """The vote, and the versions behind the places."""
    left, right = (version_of(comparison.at(place)) for place in range(2))
    same = " Both are the same version, so the vote is not counted." if left == right else ""
    return f"Your last vote: {VOTE_WORDS[vote]}. {PLACES[0]} was {left}, {PLACES[1]} was {right}.{same}"
