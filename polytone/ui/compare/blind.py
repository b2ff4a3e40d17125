"""Who is shown where, and what a vote for a place says of the models."""

from random import Random

PLACES = "ABCD"
VOTES = ("a", "b", "tie", "both_bad")

Order = tuple[int, ...]


def order_of(sides: int, blind: bool, random: Random) -> Order:
    """`order[place]` is the number of the model shown there: as they were chosen, or two of them shuffled if blind."""
    places = list(range(sides))
    if blind:
        random.shuffle(places)
    return tuple(places)


def choice_of(vote: str, order: Order) -> str:
    """A vote for the left (a) or the right (b) as one for the model that was chosen first (a) or second (b)."""
    return "ab"[order["ab".index(vote)]] if vote in ("a", "b") else vote


def shown_left(order: Order) -> str:
    """Which of the pair stood on the left, as POST /v1/feedback takes it."""
    return "ab"[order[0]]
