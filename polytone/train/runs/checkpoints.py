"""Checkpoints of a run that can be resumed, with batches in the same order again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from polytone.contract.files import write_whole

CHECKPOINTS = "checkpoints"
ADAPTER = "adapter.safetensors"
STATE = "trainer_state.json"
OPTIMIZER = "optimizer.pt"


class ExactCheckpoints:
    """A mixin for TRL trainers, named before the trainer among a class's bases.

    Transformers would save every adapter of the model, load them back through PEFT (which casts them, and of several
    adapters does not load the trained one), and draw the batches of later epochs from a random state that a resumed run
    does not have. Here a checkpoint holds the trained adapter's float32 weights, and the order of batches depends on
    seed and epoch alone.
    """

    model: Any
    args: Any
    train_dataset: Any

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_adapter(self.model, folder / ADAPTER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_adapter(self.model, Path(resume_from_checkpoint) / ADAPTER)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: publishing writes the model card."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroups(lengths, batch, self.args.seed)


class LengthGroups(Sampler[int]):  # type: ignore[misc]
    """Rows of similar length together, in an order that depends on seed and epoch alone."""

    def __init__(self, lengths: list[int], batch: int, seed: int) -> None:
        self.lengths = lengths
        self.batch = batch
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))


def save_adapter(model: Any, path: Path) -> None:
    """Save the trained adapter's weights unchanged, whole or not at all."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in trained(model)}
    write_whole(path, save(weights))


@torch.no_grad()  # type: ignore[untyped-decorator]
def load_adapter(model: Any, path: Path) -> None:
    weights = load_file(path)
    for name, weight in trained(model):
        weight.copy_(weights[name])


def trained(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters of the adapter under training; a frozen copy of a parent is named `ref`."""
    return ((name, weight) for name, weight in model.named_parameters() if "lora_" in name and ".default." in name)


def newest_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint under `folder`; the trainer writes its state last."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]), reverse=True)
    return next((path for path in checkpoints if is_whole(path)), None)


def is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE).read_text())
        with safe_open(checkpoint / ADAPTER, "pt"):
            return (checkpoint / OPTIMIZER).is_file()
    except (OSError, ValueError, SafetensorError):
        return False


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])
