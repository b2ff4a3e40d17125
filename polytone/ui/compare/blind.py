"""Places of answers in a blind comparison, and votes for places as votes for models."""

from random import Random

PLACES = "ABCD"
VOTES = ("a", "b", "tie", "both_bad")

Order = tuple[int, ...]


def order_of(sides: int, blind: bool, random: Random) -> Order:
    """`order[place]` is the number of the model shown there: in the order chosen, or shuffled if blind."""
    places = list(range(sides))
    if blind:
        random.shuffle(places)
    return tuple(places)


def choice_of(vote: str, order: Order) -> str:
    """A vote for the left (a) or right (b) answer as a vote for the model chosen first (a) or second (b)."""
    return "ab"[order["ab".index(vote)]] if vote in ("a", "b") else vote


def shown_left(order: Order) -> str:
    """The model of the pair that was on the left, as POST /v1/feedback takes it."""
    return "ab"[order[0]]
