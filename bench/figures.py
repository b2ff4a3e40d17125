"""What a benchmark found: figures against their bars, as lines, as JSON and as a plot."""

import contextlib
import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import psutil


@dataclass(frozen=True)
class Figure:
    """A row's figure and the bar it has to reach: at least, or at most where `at_most`; none where it is reported."""

    row: str
    what: str
    value: float
    bar: float | None = None
    at_most: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return self.bar is None or (self.value <= self.bar if self.at_most else self.value >= self.bar)

    def __str__(self) -> str:
        bar = "reported" if self.bar is None else f"{'at most' if self.at_most else 'at least'} {self.bar:g}"
        return f"{'   ' if self.holds else 'NOT'} {self.row:14} {self.value:8.2f}  ({bar})  {self.what}"


def write(folder: Path, figures: list[Figure], seconds: float, generator_share: float) -> None:
    """speed.json and speed.png; `generator_share` is the load generator's own share of a core."""
    machine = {"processor": processor(), "cores": psutil.cpu_count(logical=False), "python": platform.python_version()}
    rows = [{**asdict(figure), "holds": figure.holds} for figure in figures]
    found = {"machine": machine, "seconds": seconds, "generator_share": generator_share, "rows": rows}
    (folder / "speed.json").write_text(json.dumps(found, indent=1))
    plot(folder / "speed.png", [figure for figure in figures if not figure.at_most])


def processor() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")
    return platform.processor()


def plot(path: Path, figures: list[Figure]) -> None:
    mpl.use("agg")
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(figsize=(9, 0.5 * len(figures) + 1.2), layout="constrained")
    names = [figure.row for figure in reversed(figures)]
    axes.barh(names, [figure.value for figure in reversed(figures)], color="#4878a8")
    bars = [(number, figure.bar) for number, figure in enumerate(reversed(figures)) if figure.bar is not None]
    axes.plot([bar for _, bar in bars], [number for number, _ in bars], "k|", markersize=18, label="bar")
    axes.set_xscale("log")
    axes.set_xlabel("ratio, higher is better")
    axes.legend(loc="lower right")
    drawing.savefig(path, dpi=120)
    pyplot.close(drawing)
