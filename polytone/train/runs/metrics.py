"""The metrics of a run: metrics.jsonl, the progress bar, and events for TensorBoard."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from polytone.contract.errors import CheckError
from polytone.progress import Progress
from polytone.train.recipe import Recipe

METRICS = "metrics.jsonl"


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Writes every log record as one JSON line, moves the progress bar, stops a run whose loss is not finite."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self.path = path
        self.progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        record = {"step": state.global_step, **(logs or {})}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        loss = record.get("loss")
        if loss is None:
            return
        if not float(loss) < float("inf"):
            raise CheckError(
                f"The loss became {loss} at step {state.global_step}. Lower training.learning_rate.",
                code="training_diverged",
            )
        self.progress.advance(f"loss {float(loss):.2f}")


def events(recipe: Recipe, folder: Path) -> list[TrainerCallback]:
    """Events for TensorBoard in the run's folder; the trainer's own folder is removed when the run ends."""
    if not recipe.training.tensorboard:
        return []
    from torch.utils.tensorboard import SummaryWriter

    return [TensorBoardCallback(SummaryWriter(folder / "tensorboard"))]


def drop_records_after(metrics: Path, step: int) -> None:
    """Drop the records of steps that will be taken again."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    metrics.write_text("".join(line + "\n" for line in lines if step_in(line) <= step), encoding="utf-8")


def last_step(metrics: Path) -> int:
    """The last step that was recorded, 0 for none."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    return max((int(step) for step in map(step_in, lines) if step < float("inf")), default=0)


def step_in(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):  # a line that was cut off when the process was killed
        return float("inf")
