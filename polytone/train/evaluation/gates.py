"""Figures against the gates of a recipe: one word, and every gate that failed with figure and bar."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from polytone.contract.adapter import Manifest
from polytone.contract.errors import CheckError
from polytone.contract.evaluation import FailedGate, Word
from polytone.contract.rows import describe
from polytone.train.artifact.scoring import LEAST_CHANGE

from ..recipe import GatesSection
from .bias import certain_gap
from .compare import BASE, PARENT, VOICE
from .results import Results


@dataclass(frozen=True)
class GateResult:
    """A figure held against a bar."""

    gate: str
    figure: float
    bar: float
    passed: bool
    message: str

    def failed(self) -> FailedGate:
        return FailedGate(gate=self.gate, figure=round(self.figure, 6), bar=self.bar, message=self.message)


@dataclass(frozen=True)
class Judgement:
    """The word, everything that was held against a bar, and what could not be."""

    word: Word
    held: list[GateResult]
    not_measured: dict[str, str]

    @property
    def passed(self) -> bool:
        return self.word == "good"

    @property
    def reasons(self) -> list[FailedGate]:
        return [one.failed() for one in self.held if not one.passed]


def gates_of(manifest: Manifest) -> GatesSection:
    """The gates of the recipe that a version was trained by; the defaults for what it does not name.

    Raises:
        CheckError: `manifest_invalid`.
    """
    try:
        return GatesSection.model_validate(manifest.recipe.get("gates") or {})
    except ValidationError as error:
        raise CheckError(
            f"{manifest.version}: manifest.json: recipe.gates: {describe(error.errors()[0])}. "
            "Take the gates of a recipe instead: --gates recipe.yaml",
            code="manifest_invalid",
            param="recipe.gates",
        ) from None


def judge(measured: Results, gates: GatesSection) -> Judgement:
    """An adapter that answers as its base does or worse is never good, whatever its gates say."""
    unlearned = list(nothing_learned(measured))
    worse = [] if unlearned else list(damaged(measured))
    held = [*unlearned, *worse, *on_losses(measured, gates), *on_replies(measured, gates), *on_bias(measured, gates)]
    missing = dict(not_measured(measured, gates))
    if unlearned:
        return Judgement("nothing learned", held, missing)
    if worse:
        return Judgement("damaged", held, missing)
    return Judgement("good" if all(one.passed for one in held) else "not good enough", held, missing)


def nothing_learned(measured: Results) -> Iterator[GateResult]:
    """Every conversation has the loss that the base has, to what a rounding makes."""
    change = measured.largest_change
    if change < LEAST_CHANGE:
        message = (
            f"nothing was learned: no conversation's loss differs from the base's by more than {change:.2g} nats per "
            "token, so the version answers exactly like the base. Train it longer or with a higher learning rate."
        )
        yield GateResult("nothing_learned", change, LEAST_CHANGE, False, message)


def damaged(measured: Results) -> Iterator[GateResult]:
    """The loss is higher than the base's beyond chance."""
    worse = measured.difference(VOICE, BASE)["loss"]
    if worse.low > 0:
        message = (
            f"damaged: its loss is {worse.value:.3f} nats per token higher than the bare base's (95 % interval "
            f"{worse.low:.3f} to {worse.high:.3f}). It answers worse than without the adapter; train it anew, with a "
            "lower learning rate or on other rows."
        )
        yield GateResult("damaged", worse.value, 0.0, False, message)


def on_losses(measured: Results, gates: GatesSection) -> Iterator[GateResult]:
    if gates.min_improvement is not None:
        loss = measured.difference(BASE, VOICE)["loss"]
        yield at_least(
            "min_improvement",
            loss.low,
            gates.min_improvement,
            f"against the base the loss falls by {loss.value:.3f} nats per token, with 95 % confidence by at least",
        )
    if gates.max_parent_loss_increase is not None and PARENT in measured.samples:
        loss = measured.difference(VOICE, PARENT)["loss"]
        yield at_most(
            "max_parent_loss_increase",
            loss.high,
            gates.max_parent_loss_increase,
            f"against the parent the loss changes by {loss.value:+.3f} nats per token, with 95 % confidence by at most",
        )


def on_replies(measured: Results, gates: GatesSection) -> Iterator[GateResult]:
    mine = measured.samples[VOICE]
    if gates.min_chrf_gain is not None:
        gain = measured.difference(VOICE, BASE)["chrf"].value
        what = "replies come nearer to the reference answers than the base's by a chrF of"
        yield at_least("min_chrf_gain", gain, gates.min_chrf_gain, what)
    for gate, hold, figure, what in (
        ("min_tone", at_least, "tone", "replies sound like the voice with a mean probability of"),
        ("min_on_topic", at_least, "on_topic", "replies fit their own question rather than another's with a share of"),
        ("max_repetition", at_most, "repetition", "of the sequences of four words in a reply, repeated is a share of"),
        (
            "max_cut_off",
            at_most,
            "cut_off",
            f"of the replies, not over after {measured.new_tokens} tokens is a share of",
        ),
        ("max_empty", at_most, "empty", "of the replies, empty is a share of"),
    ):
        bar = getattr(gates, gate)
        if bar is not None and figure in mine:
            yield hold(gate, mine[figure].value, bar, what)


def on_bias(measured: Results, gates: GatesSection) -> Iterator[GateResult]:
    """The largest gap whose interval excludes smaller ones, over kinds and measures."""
    if gates.max_bias_gap is None:
        return
    found = [
        (
            certain_gap(gap),
            f"answers to questions that differ in a {kind} only differ in {name}, surely by",
        )
        for kind, of_kind in measured.bias[VOICE].items()
        for name, gap in of_kind.items()
    ]
    gap, what = max(found, key=lambda pair: pair[0])
    yield at_most("max_bias_gap", gap, gates.max_bias_gap, what)


def not_measured(measured: Results, gates: GatesSection) -> Iterator[tuple[str, str]]:
    if gates.min_tone is not None and "tone" not in measured.samples[VOICE]:
        yield "min_tone", f"{measured.replies} conversations are too few to learn the tone from; at least 20 are needed"
    if gates.max_parent_loss_increase is not None and measured.wanted_parent and PARENT not in measured.samples:
        yield "max_parent_loss_increase", f"the parent {measured.wanted_parent} is not on disk"


def at_least(gate: str, figure: float, bar: float, what: str) -> GateResult:
    return GateResult(gate, figure, bar, figure >= bar, f"{gate}: {what} {figure:.3f}; at least {bar:g} is demanded.")


def at_most(gate: str, figure: float, bar: float, what: str) -> GateResult:
    return GateResult(gate, figure, bar, figure <= bar, f"{gate}: {what} {figure:.3f}; at most {bar:g} is allowed.")


def as_json(held: GateResult) -> dict[str, Any]:
    return {"gate": held.gate, "figure": round(held.figure, 6), "bar": held.bar, "passed": held.passed}
