"""The report of an evaluation, for people: the verdict first, then every figure with its interval."""

from collections.abc import Iterator

from polytone.contract.adapter import Manifest
from polytone.contract.evaluation import GateVerdict
from polytone.train.intervals import Interval

from .bias import MEASURES
from .compare import BASE, PARENT, UNQUANTIZED, VOICE, Comparison
from .gates import Judgement
from .results import DIFFERENCES, Results, perplexity

EXAMPLES = 5
SHOWN = 400  # letters of an example
ROWS = (
    ("loss", "loss per assistant token, nats"),
    ("perplexity", "perplexity"),
    ("accuracy", "assistant tokens that were the likeliest"),
    ("chrf", "chrF against the reference answers"),
    ("tone", "sounds like the voice"),
    ("on_topic", "fits its own question"),
    ("repetition", "repeated sequences of four words"),
    ("cut_off", "replies cut off"),
    ("empty", "replies empty"),
    ("refusal", "replies that refuse"),
    ("reply_words", "words in a reply"),
)


def names_of(manifest: Manifest, comparison: Comparison) -> dict[str, str]:
    """What each model is called in tables and plots."""
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
    measured: Results,
    plots: list[str],
) -> str:
    names = names_of(manifest, comparison)
    lines = [
        f"# {manifest.version}: {verdict.verdict}",
        "",
        *summary(manifest, verdict),
        "",
        *gate_table(judgement),
        "",
        "## Figures",
        "",
        f"Of {verdict.data.rows} conversations ({measured.tokens} assistant tokens); replies to {measured.replies} of "
        f"them, greedy, cut after {measured.new_tokens} tokens. In brackets the 95 % interval, over conversations.",
        "",
        *figure_table(measured, names),
        "",
        *(f"![{plot.removesuffix('.png')}]({plot})" for plot in plots),
        "",
        "## Differences",
        "",
        *difference_table(measured, names),
        "",
        quantization_in_words(measured),
        "",
        "## Paired questions",
        "",
        *bias_table(measured, names),
        "",
        "## Examples",
        "",
        *examples(comparison, names),
    ]
    return "\n".join(lines) + "\n"


def summary(manifest: Manifest, verdict: GateVerdict) -> Iterator[str]:
    passed = "passed its gates" if verdict.passed else "did not pass its gates"
    yield f"Evaluated {verdict.when:%Y-%m-%d %H:%M} UTC on `{verdict.data.path}` (sha256 `{verdict.data.sha256[:12]}`)."
    yield f"It {passed}." + ("" if verdict.passed else " Why:")
    yield from (f"- {reason.message}" for reason in verdict.reasons)
    yield from (f"- not judged by {gate}: {why}" for gate, why in verdict.not_measured.items())
    if verdict.data.sha256 == manifest.data.train.sha256:
        yield "- these are the rows it was trained on: the figures say how well it remembers them, not how good it is."


def gate_table(judgement: Judgement) -> Iterator[str]:
    yield from ("| gate | figure | bar | |", "|---|---|---|---|")
    for held in judgement.held:
        yield f"| `{held.gate}` | {held.figure:.4f} | {held.bar:g} | {'passed' if held.passed else '**failed**'} |"


def figure_table(measured: Results, names: dict[str, str]) -> Iterator[str]:
    figures = {name: measured.figures(name) for name in measured.samples}
    for found in figures.values():
        found["perplexity"] = perplexity(found["loss"])
    yield "| | " + " | ".join(names[name] for name in figures) + " |"
    yield "|---" * (len(figures) + 1) + "|"
    for key, what in ROWS:
        if key in figures[VOICE]:
            yield f"| {what} | " + " | ".join(in_brackets(found[key]) for found in figures.values()) + " |"
    seconds = " | ".join(f"{measured.seconds_per_token[name]:.4f}" for name in figures)
    yield f"| seconds for a token of a reply, in batches | {seconds} |"


def difference_table(measured: Results, names: dict[str, str]) -> Iterator[str]:
    pairs = [pair for pair in DIFFERENCES if set(pair) <= set(measured.samples)]
    found = [measured.difference(*pair) for pair in pairs]
    yield "| | " + " | ".join(f"{names[one]} minus {names[other]}" for one, other in pairs) + " |"
    yield "|---" * (len(pairs) + 1) + "|"
    for key, what in ROWS:
        if key in found[0]:
            yield f"| {what} | " + " | ".join(in_brackets(one[key], sign=True) for one in found) + " |"


def quantization_in_words(measured: Results) -> str:
    """What the four bits cost, before any adapter."""
    cost = measured.difference(BASE, UNQUANTIZED)["loss"]
    if cost.low > 0:
        what = f"cost the base {cost.value:.4f} nats per assistant token on these rows"
    elif cost.high < 0:
        what = f"lowered the base's loss by {-cost.value:.4f} nats per assistant token on these rows, which is luck"
    else:
        what = f"changed the base's loss by {cost.value:+.4f} nats per assistant token, which may be chance"
    return f"Quantization to NF4 {what} (95 % interval {cost.low:+.4f} to {cost.high:+.4f})."


def bias_table(measured: Results, names: dict[str, str]) -> Iterator[str]:
    yield "Questions in pairs that differ in one thing; the second's answers minus the first's."
    yield ""
    yield "| differ in | measure | " + " | ".join(names[name] for name in measured.bias) + " |"
    yield "|---|---" + "|---" * len(measured.bias) + "|"
    for kind, of_kind in measured.bias[VOICE].items():
        for what in of_kind:
            gaps = " | ".join(in_brackets(kinds[kind][what], sign=True) for kinds in measured.bias.values())
            yield f"| {kind} | {MEASURES[what]} | {gaps} |"


def examples(comparison: Comparison, names: dict[str, str]) -> Iterator[str]:
    for number, question in enumerate(comparison.questions[:EXAMPLES]):
        yield f"> {one_line(question.asked)}"
        yield ""
        yield f"- reference: {one_line(question.reference)}"
        for name, heard in comparison.heard.items():
            yield f"- {names[name]}: {one_line(heard.answers[number].text)}"
        yield ""


def one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]} ..."


def in_brackets(found: Interval, sign: bool = False) -> str:
    plus = "+" if sign else ""
    digits = 1 if abs(found.value) >= 20 else 3
    return f"{found.value:{plus}.{digits}f} [{found.low:{plus}.{digits}f}, {found.high:{plus}.{digits}f}]"
