"""Training in several processes at once, as `accelerate launch` or `torchrun` start them: who is who."""

import os
from typing import TypeVar

T = TypeVar("T")


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes: files, progress, the version."""
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
