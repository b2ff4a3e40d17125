"""Does an adapter sit on modules that its base has? An engine ignores the rest without a word."""

from collections.abc import Iterator

from .adapter import WEIGHTS, lora_pairs
from .errors import CheckError
from .tensors import TensorInfo

SHOWN = 5


def check_against_base(tensors: dict[str, TensorInfo], shapes: dict[str, tuple[int, ...]]) -> Iterator[CheckError]:
    """Every adapted module must be one of the base's, in its shape.

    Args:
        tensors: the adapter's, as `read_header` gives them.
        shapes: module -> (out, in) of the base, as `module_shapes` gives them.
    """
    wrong = []
    for module, pair in lora_pairs(tensors).items():
        shape = shapes.get(module)
        if shape is None:
            wrong.append(f"{module} is no module of the base")
        elif set(pair) == {"A", "B"} and (pair["B"].shape[0], pair["A"].shape[1]) != shape:
            got = (pair["B"].shape[0], pair["A"].shape[1])
            wrong.append(f"{module} is {got} where the base has {shape}")
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        yield CheckError(f"{WEIGHTS}: {'; '.join(wrong[:SHOWN])}{more}.", code="tensors_mismatch")
