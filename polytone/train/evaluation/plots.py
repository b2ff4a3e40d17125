"""The plots of a report: losses with intervals, lengths of replies, tone."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from polytone.train.documents import save_png
from polytone.train.intervals import Sample, interval

from .results import Results

LOSSES, LENGTHS, TONE = "losses.png", "lengths.png", "tone.png"


def draw_plots(results: Results, titles: dict[str, str], folder: Path) -> list[str]:
    """Write the plots for which there are figures; returns their file names.

    Args:
        titles: the models' names.
    """
    names = [LOSSES, LENGTHS]
    plot_losses(results, titles, folder / LOSSES)
    plot_spread(samples_of(results, "reply_words"), titles, "words per reply", folder / LENGTHS)
    if tones := samples_of(results, "tone"):
        plot_spread(tones, titles, "tone (probability)", folder / TONE)
        names.append(TONE)
    return names


def samples_of(results: Results, figure: str) -> dict[str, Sample]:
    return {model: samples[figure] for model, samples in results.samples.items() if figure in samples}


def plot_losses(results: Results, titles: dict[str, str], target: Path) -> None:
    losses = {model: interval(sample) for model, sample in samples_of(results, "loss").items()}
    figure, axes = canvas(len(losses))
    for place, loss in enumerate(losses.values()):
        error = [[loss.value - loss.low], [loss.high - loss.value]]
        axes.errorbar(loss.value, place, xerr=error, fmt="o", capsize=4, color="tab:blue")
    label(axes, [titles[model] for model in losses], "loss per assistant token (nats), 95 % interval")
    save_png(figure, target)


def plot_spread(samples: dict[str, Sample], titles: dict[str, str], unit: str, target: Path) -> None:
    """One dot per conversation, the mean as a line."""
    figure, axes = canvas(len(samples))
    for place, sample in enumerate(samples.values()):
        values = sample.sums / sample.counts
        # Dots of equal value are spread by their rank instead of at random, so that the plot is the same every time.
        shifts = [place + 0.3 * (2 * (rank % 7) / 6 - 1) for rank in range(len(values))]
        axes.plot(sorted(values), shifts, ".", alpha=0.5, color="tab:blue")
        axes.plot([sample.value] * 2, [place - 0.35, place + 0.35], "-", color="tab:red")
    label(axes, [titles[model] for model in samples], f"{unit}; the line is the mean")
    save_png(figure, target)


def canvas(rows: int) -> tuple[Any, Any]:
    figure = Figure(figsize=(7, 1.2 + 0.6 * rows), layout="constrained")
    return figure, figure.subplots()


def label(axes: Any, rows: list[str], unit: str) -> None:
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.grid(axis="x", alpha=0.3)
