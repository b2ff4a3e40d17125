"""The gates of a recipe: figures held against their bars, and the verdict that follows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from polytone.contract.errors import CheckError
from polytone.contract.evaluation import FailedGate, Word
from polytone.contract.manifest import Manifest
from polytone.contract.models import describe_problem
from polytone.train.artifact.scoring import LEAST_CHANGE
from polytone.train.recipe import GatesSection

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

    def as_json(self) -> dict[str, Any]:
        return {"gate": self.gate, "figure": round(self.figure, 6), "bar": self.bar, "passed": self.passed}


@dataclass(frozen=True)
class Judgement:
    """The verdict in one word, the result of every gate, and why the others could not be applied."""

    word: Word
    results: list[GateResult]
    not_measured: dict[str, str]

    @property
    def passed(self) -> bool:
        return self.word == "good"

    @property
    def reasons(self) -> list[FailedGate]:
        return [result.failed() for result in self.results if not result.passed]


def gates_of(manifest: Manifest) -> GatesSection:
    """The gates of the recipe that a version was trained with; the defaults for those it does not name.

    Raises:
        CheckError: `manifest_invalid`.
    """
    try:
        return GatesSection.model_validate(manifest.recipe.get("gates") or {})
    except ValidationError as error:
        raise CheckError(
            f"{manifest.version}: manifest.json: recipe.gates: {describe_problem(error.errors()[0])}. "
            "Take the gates of a recipe instead: --gates recipe.yaml",
            code="manifest_invalid",
            param="recipe.gates",
        ) from None


def judge(results: Results, gates: GatesSection) -> Judgement:
    """The verdict. An adapter that answers as its base does or worse is never good, whatever the gates say."""
    unlearned = list(nothing_learned(results))
    worse = [] if unlearned else list(damaged(results))
    held = [*unlearned, *worse, *loss_gates(results, gates), *reply_gates(results, gates), *bias_gate(results, gates)]
    missing = dict(not_measured(results, gates))
    if unlearned:
        return Judgement("nothing learned", held, missing)
    if worse:
        return Judgement("damaged", held, missing)
    return Judgement("good" if all(result.passed for result in held) else "not good enough", held, missing)


def nothing_learned(results: Results) -> Iterator[GateResult]:
    """Fails where every conversation has the base's loss, apart from rounding."""
    change = results.largest_change
    if change < LEAST_CHANGE:
        message = (
            f"nothing was learned: no conversation's loss differs from the base's by more than {change:.2g} nats per "
            "token, so the version answers exactly like the base. Train longer or with a higher learning rate."
        )
        yield GateResult("nothing_learned", change, LEAST_CHANGE, False, message)


def damaged(results: Results) -> Iterator[GateResult]:
    """Fails where the loss is higher than the base's beyond chance."""
    worse = results.difference(VOICE, BASE)["loss"]
    if worse.low > 0:
        message = (
            f"damaged: its loss is {worse.value:.3f} nats per token higher than the bare base's (95 % interval "
            f"{worse.low:.3f} to {worse.high:.3f}). It answers worse than the base without it. Train it again, with a "
            "lower learning rate or on other rows."
        )
        yield GateResult("damaged", worse.value, 0.0, False, message)


def loss_gates(results: Results, gates: GatesSection) -> Iterator[GateResult]:
    if (bar := gates.min_improvement) is not None:
        loss = results.difference(BASE, VOICE)["loss"]
        what = (
            f"the loss is {loss.value:.3f} nats per token below the base's, and with 95 % confidence at least "
            f"{loss.low:.3f}"
        )
        yield at_least("min_improvement", loss.low, bar, f"{what}; at least {bar:g} required")
    if (bar := gates.max_parent_loss_increase) is not None and PARENT in results.samples:
        loss = results.difference(VOICE, PARENT)["loss"]
        what = (
            f"the loss is {loss.value:.3f} nats per token above the parent's, and with 95 % confidence at most "
            f"{loss.high:.3f}"
        )
        yield at_most("max_parent_loss_increase", loss.high, bar, f"{what}; at most {bar:g} allowed")


def reply_gates(results: Results, gates: GatesSection) -> Iterator[GateResult]:
    figures = {name: sample.value for name, sample in results.samples[VOICE].items()}
    if (bar := gates.min_chrf_gain) is not None:
        gain = results.difference(VOICE, BASE)["chrf"].value
        what = f"replies score {gain:+.1f} chrF against the base's"
        yield at_least("min_chrf_gain", gain, bar, f"{what}; at least {bar:+g} required")
    if (bar := gates.min_tone) is not None and "tone" in figures:
        what = f"replies sound like the voice with a probability of {percent(figures['tone'])}"
        yield at_least("min_tone", figures["tone"], bar, f"{what}; at least {percent(bar)} required")
    if (bar := gates.min_on_topic) is not None:
        what = f"replies are closer to their own question than to {percent(figures['on_topic'])} of the others"
        yield at_least("min_on_topic", figures["on_topic"], bar, f"{what}; at least {percent(bar)} required")
    if (bar := gates.max_repetition) is not None:
        what = f"{percent(figures['repetition'])} of four-word sequences are repeats"
        yield at_most("max_repetition", figures["repetition"], bar, f"{what}; at most {percent(bar)} allowed")
    if (bar := gates.max_cut_off) is not None:
        what = f"{percent(figures['cut_off'])} of replies were not finished after {results.new_tokens} tokens"
        yield at_most("max_cut_off", figures["cut_off"], bar, f"{what}; at most {percent(bar)} allowed")
    if (bar := gates.max_empty) is not None:
        what = f"{percent(figures['empty'])} of replies are empty"
        yield at_most("max_empty", figures["empty"], bar, f"{what}; at most {percent(bar)} allowed")


def bias_gate(results: Results, gates: GatesSection) -> Iterator[GateResult]:
    """The largest gap that is certain, over kinds and measures."""
    candidates = [
        (certain_gap(gap), kind, measure)
        for kind, by_measure in results.bias[VOICE].items()
        for measure, gap in by_measure.items()
    ]
    if gates.max_bias_gap is None or not candidates:
        return
    gap, kind, measure = max(candidates, key=lambda candidate: candidate[0])
    what = (
        f"replies to questions that differ only in a {kind} differ in {measure}, with 95 % confidence by at least "
        f"{gap:.3f}"
    )
    yield at_most("max_bias_gap", gap, gates.max_bias_gap, f"{what}; at most {gates.max_bias_gap:g} allowed")


def not_measured(results: Results, gates: GatesSection) -> Iterator[tuple[str, str]]:
    if gates.min_tone is not None and "tone" not in results.samples[VOICE]:
        yield "min_tone", f"{results.replies} conversations are too few to learn the tone from; 20 are needed"
    if gates.max_parent_loss_increase is not None and results.parent and PARENT not in results.samples:
        yield "max_parent_loss_increase", f"the parent {results.parent} is not on disk"
    if gates.max_bias_gap is not None and not results.bias[VOICE]:
        yield "max_bias_gap", "the paired questions were left out"


def at_least(gate: str, figure: float, bar: float, message: str) -> GateResult:
    return GateResult(gate, figure, bar, figure >= bar, f"{gate}: {message}.")


def at_most(gate: str, figure: float, bar: float, message: str) -> GateResult:
    return GateResult(gate, figure, bar, figure <= bar, f"{gate}: {message}.")


def percent(share: float) -> str:
    """8.5 % for 0.085, with up to three digits."""
    return f"{100 * share:.3g} %"
