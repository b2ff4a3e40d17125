"""What a comparison comes to: figures with intervals, differences, and gaps between paired questions."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from polytone.contract.adapter import Manifest
from polytone.train.intervals import Interval, Sample, difference, interval

from .bias import gaps
from .compare import BASE, PARENT, PROBED, UNQUANTIZED, VOICE, Comparison
from .metrics import learn_tone, of_replies, of_scores

# What is told of each pair, first minus second.
DIFFERENCES = ((VOICE, BASE), (VOICE, PARENT), (BASE, UNQUANTIZED))


@dataclass(frozen=True)
class Results:
    """`samples[model][figure]`, in nats, shares, words or chrF; `bias[model][kind][measure]`."""

    samples: dict[str, dict[str, Sample]]
    bias: dict[str, dict[str, dict[str, Interval]]]
    seconds_per_token: dict[str, float]
    tokens: int
    replies: int
    new_tokens: int
    wanted_parent: str | None

    @property
    def largest_change(self) -> float:
        """The most by which a conversation's loss per token differs from the base's."""
        mine, base = self.samples[VOICE]["loss"], self.samples[BASE]["loss"]
        return float(np.max(np.abs(mine.sums - base.sums) / np.maximum(mine.counts, 1)))

    def figures(self, model: str) -> dict[str, Interval]:
        return {name: interval(sample) for name, sample in self.samples[model].items()}

    def difference(self, one: str, other: str) -> dict[str, Interval]:
        """Figure -> `one` minus `other`, on the same conversations."""
        mine, theirs = self.samples[one], self.samples[other]
        return {name: difference(mine[name], theirs[name]) for name in mine if name in theirs}


def measure_all(comparison: Comparison, manifest: Manifest) -> Results:
    base_replies = [answer.text for answer in comparison.heard[BASE].answers]
    judges = learn_tone(comparison.questions, base_replies)
    samples = {
        name: {**of_scores(heard.scores), **of_replies(comparison.questions, heard.answers, judges)}
        for name, heard in comparison.heard.items()
    }
    return Results(
        samples=samples,
        bias={name: gaps(comparison.heard[name].probes, judges.of_all) for name in PROBED},
        seconds_per_token={name: heard.seconds_per_token for name, heard in comparison.heard.items()},
        tokens=comparison.tokens,
        replies=len(comparison.questions),
        new_tokens=comparison.new_tokens,
        wanted_parent=manifest.parent,
    )


def as_json(measured: Results) -> dict[str, Any]:
    """Figures, differences and gaps as evaluation.json holds them."""
    return {
        "models": {
            name: {
                **{figure: found.as_json() for figure, found in measured.figures(name).items()},
                "perplexity": perplexity(measured.figures(name)["loss"]).as_json(),
                "seconds_per_reply_token": round(measured.seconds_per_token[name], 6),
            }
            for name in measured.samples
        },
        "differences": {
            f"{one}_minus_{other}": {
                figure: found.as_json() for figure, found in measured.difference(one, other).items()
            }
            for one, other in DIFFERENCES
            if one in measured.samples and other in measured.samples
        },
        "bias": {
            name: {
                kind: {what: gap.as_json() for what, gap in of_kind.items()}
                for kind, of_kind in measured.bias[name].items()
            }
            for name in measured.bias
        },
    }


def perplexity(loss: Interval) -> Interval:
    """exp of the loss per token, and of its bounds."""
    return Interval(*(float(np.exp(bound)) for bound in (loss.value, loss.low, loss.high)))
