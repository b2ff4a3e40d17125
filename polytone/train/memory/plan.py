"""A training plan: the choices that memory depends on, with Polytone's defaults."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from polytone.train.recipe import Recipe

from .shape import Shape

Method = Literal["full", "lora", "qlora"]
Device = Literal["cpu", "cuda"]
Loss = Literal["supervised", "chunked", "whole"]
METHODS: tuple[Method, ...] = ("full", "lora", "qlora")
DTYPE_BYTES = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2})
# Share of a row's tokens that are the assistant's; in the conversations of examples/ it is a third.
SUPERVISED = 0.5
# `evaluate` takes this many held-out rows at a time, whatever the batch of training is.
EVALUATION_ROWS = 8


@dataclass(frozen=True)
class Optimizer:
    """Bytes per parameter that an optimizer keeps; `master` is for a float32 copy of weights that are not float32."""

    state: float
    master: int
    words: str


OPTIMIZERS = MappingProxyType(
    {
        "adamw": Optimizer(8, 0, "AdamW with two float32 moments, 8 bytes a parameter"),
        "adamw-master": Optimizer(8, 4, "AdamW with two float32 moments and float32 master weights, 12 bytes"),
        "adamw-bf16": Optimizer(4, 0, "AdamW with moments in bfloat16, 4 bytes a parameter"),
        "adamw-8bit": Optimizer(
            2 + 8 / 256, 0, "AdamW with two 8-bit moments and their scales, 2.03 bytes a parameter"
        ),
        "sgd": Optimizer(0, 0, "SGD without momentum, which keeps nothing"),
    }
)


@dataclass(frozen=True)
class Plan:
    """`batch` rows of `length` tokens are in memory at a time; a recipe calls the former `training.micro_batch`.

    Args:
        targets: names of the linear layers that LoRA adapts; empty for all of them.
        dtype: of weights that are not quantized, activations and full gradients.
        checkpointing: keep only the input of each block and recompute the rest in the backward pass.
        loss: `supervised` is ours (methods/cpu_loss.py), `chunked` is TRL's, `whole` computes all logits at once.
        supervised: share of the positions that have a label, 0 to 1.
        evaluation_rows: rows scored at a time when the voice is measured after training; 0 for training alone.
    """

    method: Method
    device: Device
    batch: int
    length: int
    rank: int
    targets: tuple[str, ...]
    dtype: str
    optimizer: str
    checkpointing: bool
    loss: Loss
    supervised: float
    evaluation_rows: int

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def scored(self) -> int:
        """Positions that are learned from; the first of a row is never predicted."""
        return max(1, round(self.supervised * self.batch * max(1, self.length - 1)))

    @property
    def padded(self) -> bool:
        """Rows of one batch differ in length, so attention is given a mask; a single row needs none."""
        return self.batch > 1

    @property
    def element(self) -> int:
        return DTYPE_BYTES[self.dtype]


def default_plan(shape: Shape, method: Method, device: Device, batch: int, length: int, **chosen: Any) -> Plan:
    """The plan that Polytone follows on `device`, changed by the fields in `chosen` that are not None.

    On a GPU: bfloat16, gradient checkpointing, TRL's loss. On a CPU: float32, no checkpointing, and the loss of
    train/methods/cpu_loss.py where the model's head is a plain product.
    """
    gpu = device == "cuda"
    fields: dict[str, Any] = {
        "rank": 16,
        "targets": (),
        "dtype": "bfloat16" if gpu else "float32",
        "optimizer": "adamw",
        "checkpointing": gpu,
        "loss": "supervised" if not gpu and shape.plain_head else "chunked",
        "supervised": SUPERVISED,
        "evaluation_rows": 0,
    }
    fields.update({name: value for name, value in chosen.items() if value is not None})
    return Plan(method=method, device=device, batch=batch, length=length, **fields)


def plan_of(
    recipe: Recipe,
    shape: Shape,
    device: Device,
    longest: int | None = None,
    supervised: float | None = None,
    held_out: int = EVALUATION_ROWS,
) -> Plan:
    """The plan of a recipe: QLoRA with its adapter and micro-batch.

    Args:
        longest: tokens of the longest row, where it is known; else the recipe's `training.max_length`.
        supervised: share of the tokens that are the assistant's, where it is known.
        held_out: rows the voice is measured on after training, where they are known.
    """
    lora, training = recipe.lora, recipe.training
    return default_plan(
        shape,
        "qlora",
        device,
        training.micro_batch,
        min(longest or training.max_length, training.max_length),
        rank=lora.rank,
        targets=() if lora.targets == "all-linear" else tuple(lora.targets),
        supervised=supervised,
        evaluation_rows=min(held_out, EVALUATION_ROWS),
    )
