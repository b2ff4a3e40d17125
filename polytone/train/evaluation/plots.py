"""The plots of a report: losses with intervals, lengths of replies, tone."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from polytone.train.intervals import Sample, interval

from .results import Results

LOSSES, LENGTHS, TONE = "losses.png", "lengths.png", "tone.png"


def draw_plots(measured: Results, names: dict[str, str], folder: Path) -> list[str]:
    """Write the plots there is something to draw of; returns their file names.

    Args:
        names: what each model is called.
    """
    drawn = [LOSSES, LENGTHS]
    losses(measured, names, folder / LOSSES)
    spread(of_figure(measured, "reply_words"), names, "words in a reply", folder / LENGTHS)
    if tones := of_figure(measured, "tone"):
        spread(tones, names, "sounds like the voice (probability)", folder / TONE)
        drawn.append(TONE)
    return drawn


def of_figure(measured: Results, figure: str) -> dict[str, Sample]:
    return {name: samples[figure] for name, samples in measured.samples.items() if figure in samples}


def losses(measured: Results, names: dict[str, str], target: Path) -> None:
    found = {name: interval(sample) for name, sample in of_figure(measured, "loss").items()}
    figure, axes = canvas(len(found))
    for place, one in enumerate(found.values()):
        error = [[one.value - one.low], [one.high - one.value]]
        axes.errorbar(one.value, place, xerr=error, fmt="o", capsize=4, color="tab:blue")
    label(axes, [names[name] for name in found], "loss per assistant token (nats), 95 % interval")
    figure.savefig(target, dpi=120)


def spread(samples: dict[str, Sample], names: dict[str, str], unit: str, target: Path) -> None:
    """One dot a conversation, the mean as a line."""
    figure, axes = canvas(len(samples))
    for place, sample in enumerate(samples.values()):
        values = sample.sums / sample.counts
        # Dots of equal value lie side by side, by their rank and not by chance, so that a plot is the same again.
        shifts = [place + 0.3 * (2 * (rank % 7) / 6 - 1) for rank in range(len(values))]
        axes.plot(sorted(values), shifts, ".", alpha=0.5, color="tab:blue")
        axes.plot([sample.value] * 2, [place - 0.35, place + 0.35], "-", color="tab:red")
    label(axes, [names[name] for name in samples], f"{unit}; the line is the mean")
    figure.savefig(target, dpi=120)


def canvas(rows: int) -> tuple[Any, Any]:
    figure = Figure(figsize=(7, 1.2 + 0.6 * rows), layout="constrained")
    return figure, figure.subplots()


def label(axes: Any, rows: list[str], unit: str) -> None:
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.grid(axis="x", alpha=0.3)
