"""Training in several processes, as `accelerate launch` or `torchrun` start them."""

import os
from typing import TypeVar

T = TypeVar("T")


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes files, progress and the version."""
    return int(os.environ.get("RANK", "0")) == 0


def from_main(value: T) -> T:
    """The main process's value, in every process."""
    if world_size() == 1:
        return value
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=not torch.cuda.is_available())
    values: list[T] = broadcast_object_list([value])
    return values[0]
