"""The report of an evaluation: the verdict first, then every figure with its interval."""

from collections.abc import Iterator
from pathlib import Path

from polytone.contract.evaluation import GateVerdict
from polytone.contract.manifest import Manifest
from polytone.train.documents import render, table
from polytone.train.intervals import Interval

from .bias import MEASURES
from .compare import BASE, PARENT, UNQUANTIZED, VOICE, Comparison
from .gates import Judgement
from .metrics import NAMES
from .results import Results

TEMPLATE = Path(__file__).with_name("report.md.jinja")
EXAMPLES = 5
EXAMPLE_LENGTH = 400


def model_titles(manifest: Manifest, comparison: Comparison) -> dict[str, str]:
    """The models' names in tables and plots."""
    return {
        UNQUANTIZED: "base, unquantized",
        BASE: "base, NF4",
        PARENT: f"parent {comparison.parent}",
        VOICE: manifest.version,
    }


def write_report(
    manifest: Manifest,
    verdict: GateVerdict,
    judgement: Judgement,
    comparison: Comparison,
    results: Results,
    plots: list[str],
) -> str:
    titles = model_titles(manifest, comparison)
    return render(
        TEMPLATE,
        verdict=verdict,
        trained_on=verdict.data.sha256 == manifest.data.train.sha256,
        gates=gate_table(judgement),
        results=results,
        figures=figure_table(results, titles),
        plots=plots,
        differences=difference_table(results, titles),
        quantization=quantization_cost(results),
        paired=paired_table(results, titles),
        examples=list(examples(comparison, titles)),
    )


def gate_table(judgement: Judgement) -> str:
    rows = [
        (f"`{one.gate}`", f"{one.figure:.4f}", f"{one.bar:g}", "passed" if one.passed else "**failed**")
        for one in judgement.results
    ]
    return table(("gate", "figure", "bar", ""), rows)


def figure_table(results: Results, titles: dict[str, str]) -> str:
    models = {model: results.figures(model) for model in results.samples}
    rows = [
        [name, *(with_bounds(figures[key]) for figures in models.values())]
        for key, name in NAMES.items()
        if key in models[VOICE]
    ]
    seconds = ["seconds per token", *(f"{results.seconds_per_token[model]:.4f}" for model in models)]
    return table(["", *(titles[model] for model in models)], [*rows, seconds])


def difference_table(results: Results, titles: dict[str, str]) -> str:
    differences = results.differences
    rows = [
        [name, *(with_bounds(figures[key], sign=True) for figures in differences.values())]
        for key, name in NAMES.items()
        if key in differences[VOICE, BASE]
    ]
    return table(["", *(f"{titles[one]} minus {titles[other]}" for one, other in differences)], rows)


def quantization_cost(results: Results) -> str:
    """What the four bits cost, before any adapter, in a sentence."""
    cost = results.difference(BASE, UNQUANTIZED)["loss"]
    if cost.low > 0:
        change = f"raised the base's loss by {cost.value:.4f} nats per assistant token on these rows"
    elif cost.high < 0:
        change = f"lowered the base's loss by {-cost.value:.4f} nats per assistant token on these rows, by luck"
    else:
        change = f"changed the base's loss by {cost.value:+.4f} nats per assistant token, which may be chance"
    return f"Quantization to NF4 {change} (95 % interval {cost.low:+.4f} to {cost.high:+.4f})."


def paired_table(results: Results, titles: dict[str, str]) -> str:
    """Empty where the paired questions were left out."""
    if not results.bias[VOICE]:
        return ""
    rows = [
        [kind, MEASURES[measure], *(with_bounds(gaps[kind][measure], sign=True) for gaps in results.bias.values())]
        for kind, by_measure in results.bias[VOICE].items()
        for measure in by_measure
    ]
    return table(["differ in", "measure", *(titles[model] for model in results.bias)], rows)


def examples(comparison: Comparison, titles: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Questions, each with the reference and every model's reply."""
    for number, question in enumerate(comparison.questions[:EXAMPLES]):
        replies = {titles[model]: outputs.replies[number].text for model, outputs in comparison.outputs.items()}
        texts = {"reference": question.reference, **replies}
        yield shortened(question.text), {name: shortened(text) for name, text in texts.items()}


def shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= EXAMPLE_LENGTH else f"{line[:EXAMPLE_LENGTH]} ..."


def with_bounds(figure: Interval, sign: bool = False) -> str:
    plus = "+" if sign else ""
    digits = 1 if abs(figure.value) >= 20 else 3
    return f"{figure.value:{plus}.{digits}f} [{figure.low:{plus}.{digits}f}, {figure.high:{plus}.{digits}f}]"
