"""The loss plot of a run."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from polytone.train.documents import save_png


def plot_loss(records: list[dict[str, Any]], title: str, unit: str, target: Path, kept: int | None = None) -> None:
    """Draw training and held-out loss over steps.

    Args:
        unit: of the method's loss.
        kept: the step whose adapter was kept, where there were evaluations.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "held out", "o--")):
        points = [(record["step"], record[key]) for record in records if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    if kept is not None:
        axes.axvline(kept, color="grey", linestyle=":", label=f"kept: step {kept}")
    axes.set(title=title, xlabel="optimizer step", ylabel=unit)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    save_png(figure, target)
