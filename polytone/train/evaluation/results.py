"""The results of a comparison: figures with intervals, differences, and gaps between paired questions."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from polytone.contract.manifest import Manifest
from polytone.train.intervals import Interval, Sample, difference, interval

from .bias import gaps
from .compare import BASE, PAIRED_MODELS, PARENT, UNQUANTIZED, VOICE, Comparison
from .metrics import learn_tone, reply_figures, score_figures

# The pairs whose differences are reported, first minus second.
DIFFERENCES = ((VOICE, BASE), (VOICE, PARENT), (BASE, UNQUANTIZED))


@dataclass(frozen=True)
class Results:
    """`samples[model][figure]`, in nats, shares, words or chrF; `bias[model][kind][measure]`.

    `parent` is the version's parent, which has no samples where it is not on disk.
    """

    samples: dict[str, dict[str, Sample]]
    bias: dict[str, dict[str, dict[str, Interval]]]
    seconds_per_token: dict[str, float]
    tokens: int
    replies: int
    new_tokens: int
    parent: str | None

    @property
    def largest_change(self) -> float:
        """The most by which a conversation's loss per token differs from the base's."""
        voice, base = self.samples[VOICE]["loss"], self.samples[BASE]["loss"]
        return float(np.max(np.abs(voice.sums - base.sums) / np.maximum(voice.counts, 1)))

    def figures(self, model: str) -> dict[str, Interval]:
        intervals = {name: interval(sample) for name, sample in self.samples[model].items()}
        return {"loss": intervals["loss"], "perplexity": perplexity(intervals["loss"]), **intervals}

    def difference(self, one: str, other: str) -> dict[str, Interval]:
        """Figure -> `one` minus `other`, on the same conversations."""
        first, second = self.samples[one], self.samples[other]
        return {name: difference(first[name], second[name]) for name in first if name in second}

    @property
    def differences(self) -> dict[tuple[str, str], dict[str, Interval]]:
        return {pair: self.difference(*pair) for pair in DIFFERENCES if set(pair) <= set(self.samples)}


def measure_all(comparison: Comparison, manifest: Manifest) -> Results:
    base_replies = [reply.text for reply in comparison.outputs[BASE].replies]
    classifiers = learn_tone(comparison.questions, base_replies)
    samples = {
        name: {**score_figures(outputs.scores), **reply_figures(comparison.questions, outputs.replies, classifiers)}
        for name, outputs in comparison.outputs.items()
    }
    return Results(
        samples=samples,
        bias={name: gaps(comparison.outputs[name].paired_replies, classifiers.of_all) for name in PAIRED_MODELS},
        seconds_per_token={name: outputs.seconds_per_token for name, outputs in comparison.outputs.items()},
        tokens=comparison.tokens,
        replies=len(comparison.questions),
        new_tokens=comparison.new_tokens,
        parent=manifest.parent,
    )


def as_json(results: Results) -> dict[str, Any]:
    """Figures, differences and gaps as evaluation.json holds them."""
    return {
        "models": {
            name: {
                **{figure: value.as_json() for figure, value in results.figures(name).items()},
                "seconds_per_reply_token": round(results.seconds_per_token[name], 6),
            }
            for name in results.samples
        },
        "differences": {
            f"{one}_minus_{other}": {figure: value.as_json() for figure, value in figures.items()}
            for (one, other), figures in results.differences.items()
        },
        "bias": {
            name: {
                kind: {measure: gap.as_json() for measure, gap in by_measure.items()}
                for kind, by_measure in by_kind.items()
            }
            for name, by_kind in results.bias.items()
        },
    }


def perplexity(loss: Interval) -> Interval:
    """exp of the loss per token, and of its bounds."""
    return Interval(*(float(np.exp(bound)) for bound in (loss.value, loss.low, loss.high)))
