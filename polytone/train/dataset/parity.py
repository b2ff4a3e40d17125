"""Parity of replies: rows that mention something sensitive compared with the others.

A row mentions an attribute if its users' turns have a word of a list. The replies of these rows and of the others are
compared by length, refusals and tone. Word lists miss much and misread some words; a difference shows where to look,
not that anyone was treated unfairly.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from .formats import Row

FEWEST = 20  # rows on either side; with fewer an interval is too wide
RESAMPLES, AT_ONCE = 2000, 200
ATTRIBUTES = {
    "gender": "woman women female lady girl girls wife mother mum mom daughter sister girlfriend mrs man men male "
    "gentleman boy boys husband father dad son brother boyfriend mr sir madam transgender nonbinary pregnant pregnancy",
    "origin": "african american arab arabic asian british chinese dutch english european foreigner french german "
    "greek hispanic immigrant indian irish italian japanese korean latino mexican migrant nationality nigerian "
    "pakistani polish portuguese refugee romanian russian scottish spanish syrian turkish ukrainian vietnamese",
    "religion": "atheist bible buddhist catholic christian church halal hanukkah hindu imam islam "
    "islamic jewish kosher mosque muslim pastor pray prayer priest protestant rabbi ramadan religion religious sikh "
    "synagogue temple",
    "age": "elderly grandad grandfather grandma grandmother grandpa granny kid kids child children toddler baby "
    "teenager teen pensioner retired retiree senior seniors student young youngest old-age middle-aged millennial",
    "disability": "adhd amputee autism autistic braille crutches deaf dementia depressed depression disability "
    "disabled dyslexia dyslexic epilepsy hearing-aid impaired paralysed paralyzed prosthesis stroke wheelchair",
}
# Words with which staff decline a request; `REFUSAL` in measure/signals.py is what models say when they do not answer.
DECLINE = re.compile(
    r"\b(?:can ?no?t|can['\u2019]t|unable to|not able to|not possible|won['\u2019]t be able|"
    r"no longer (?:able|possible)|must decline|against our policy|not allowed|refuse)\b",
    re.IGNORECASE,
)
POLITE = re.compile(
    r"\b(?:please|thanks?|thank you|sorry|apologi[sz]e|apologies|welcome|happy to|glad to|pleasure|of course)\b",
    re.IGNORECASE,
)
MEASURES = {
    "reply_words": "words in the last reply",
    "refusals": "share of last replies with words of refusal (cannot, unable to, not possible ...)",
    "polite_words": "words of politeness or apology in the last reply (please, thank you, sorry ...)",
    "exclamations": "exclamation marks in the last reply",
}
Values = npt.NDArray[np.float64]


class Difference(BaseModel):
    """A measure's mean with and without a mention; `low` to `high` is the 95 % interval of their difference."""

    measure: str
    mentioned: float
    others: float
    difference: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        return self.low > 0 or self.high < 0


class Group(BaseModel):
    """The rows that mention an attribute; `differences` is empty where either side has fewer than `FEWEST` rows."""

    attribute: str
    rows: int
    share: float
    differences: list[Difference]


def compare_groups(rows: Sequence[Row]) -> list[Group]:
    """For every attribute the rows that mention it, and the differences between their replies and the others'."""
    questions = [" ".join(turn.content for turn in row.conversation.messages if turn.role == "user") for row in rows]
    values = measures([row.conversation.messages[-1].content for row in rows])
    return [compare_group(name, mentioned(name, questions), values) for name in ATTRIBUTES]


def mentioned(attribute: str, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
    """For each text: does it have a word of the attribute's list?"""
    words = re.compile(rf"\b(?:{'|'.join(map(re.escape, ATTRIBUTES[attribute].split()))})\b", re.IGNORECASE)
    return np.array([words.search(text) is not None for text in texts])


def measures(replies: Sequence[str]) -> Values:
    """Replies x measures, in the order of `MEASURES`."""
    return np.array(
        [
            [len(reply.split()), bool(DECLINE.search(reply)), len(POLITE.findall(reply)), reply.count("!")]
            for reply in replies
        ],
        dtype=np.float64,
    )


def compare_group(attribute: str, ours: npt.NDArray[np.bool_], values: Values) -> Group:
    count = int(ours.sum())
    differences = []
    if min(count, len(values) - count) >= FEWEST:
        differences = compare(values[ours], values[~ours])
    return Group(attribute=attribute, rows=count, share=round(count / len(values), 4), differences=differences)


def compare(ours: Values, others: Values) -> list[Difference]:
    """Differences of means with percentile bootstrap intervals (Efron 1979), resampled by fixed seeds."""
    resampled = resampled_means(ours, seed=0) - resampled_means(others, seed=1)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    a, b = ours.mean(0), others.mean(0)
    return [Difference(measure=name, **rounded(a[k], b[k], low[k], high[k])) for k, name in enumerate(MEASURES)]


def resampled_means(values: Values, seed: int) -> Values:
    return np.concatenate([weights @ values / len(values) for weights in resamples(len(values), seed)])


def resamples(count: int, seed: int) -> Iterator[Values]:
    """Numbers of times each of `count` rows was drawn, (`AT_ONCE`, count) at a time, `RESAMPLES` in all.

    Weights for a matrix product: scipy's bootstrap gathers rows, which takes gigabytes for a large file.
    """
    random = np.random.default_rng(seed)
    shares = np.full(count, 1 / count)
    for _ in range(RESAMPLES // AT_ONCE):
        yield random.multinomial(count, shares, size=AT_ONCE).astype(np.float64)


def rounded(a: float, b: float, low: float, high: float) -> dict[str, float]:
    named = {"mentioned": a, "others": b, "difference": a - b, "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in named.items()}
