"""Compare the modules of an adapter with those of its base. An engine silently ignores what does not match."""

from collections.abc import Iterator

from .adapter import WEIGHTS, lora_pairs
from .errors import CheckError
from .tensors import TensorInfo

SHOWN = 5


def check_against_base(tensors: dict[str, TensorInfo], shapes: dict[str, tuple[int, ...]]) -> Iterator[CheckError]:
    """Every adapted module must be a module of the base and fit its shape.

    Args:
        tensors: the adapter's tensors, from `read_header`.
        shapes: module -> (out, in) of the base, from `module_shapes`.
    """
    wrong = []
    for module, pair in lora_pairs(tensors).items():
        shape = shapes.get(module)
        if shape is None:
            wrong.append(f"{module} is not a module of the base")
        elif set(pair) == {"A", "B"} and (pair["B"].shape[0], pair["A"].shape[1]) != shape:
            got = (pair["B"].shape[0], pair["A"].shape[1])
            wrong.append(f"{module} is {got} where the base has {shape}")
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        yield CheckError(f"{WEIGHTS}: {'; '.join(wrong[:SHOWN])}{more}.", code="tensors_mismatch")
