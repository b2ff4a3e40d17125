"""The best adapter of a run by held-out loss, and early stopping."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from .checkpoints import load_adapter, save_adapter


class KeepBest(TrainerCallback):  # type: ignore[misc]
    """Keeps the adapter of the lowest held-out loss in a file; stops after `patience` evaluations without a lower one.

    It reads the losses from the trainer's own log, which a resumed run has too. (Transformers keeps the best model
    among its checkpoints, which would have to be as frequent as the evaluations.)
    """

    def __init__(self, path: Path, patience: int | None) -> None:
        self.path = path
        self.patience = patience

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate after the last step too, whatever the interval of evaluations."""
        if args.eval_strategy != "no" and state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        losses = held_out_losses(state)
        best = losses.index(min(losses))
        if best == len(losses) - 1 and state.is_world_process_zero:
            save_adapter(model, self.path)
        if self.patience is not None and len(losses) - 1 - best >= self.patience:
            control.should_training_stop = True

    def restore(self, model: Any, state: Any) -> int | None:
        """Put the best adapter back into the model; returns its step, None without evaluations."""
        losses = held_out_losses(state)
        if not losses or not self.path.is_file():
            return None
        best = losses.index(min(losses))
        load_adapter(model, self.path)
        self.path.unlink()
        return [int(record["step"]) for record in state.log_history if "eval_loss" in record][best]


def held_out_losses(state: Any) -> list[float]:
    return [float(record["eval_loss"]) for record in state.log_history if "eval_loss" in record]
