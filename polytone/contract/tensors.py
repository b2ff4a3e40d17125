"""Read the header of a safetensors file without loading a tensor.

Format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes back to back
(https://huggingface.co/docs/safetensors).
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

from .errors import CheckError

MAX_HEADER_BYTES = 100_000_000
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class TensorInfo:
    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Names, types and shapes of the tensors in a file, after checking that every byte is there.

    Raises:
        CheckError: `not_safetensors` or `file_truncated`.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start[:2] in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK"):
            raise not_safetensors(path, "it is a pickle, which can run code when it is read")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise not_safetensors(path, "its header is longer than the file; it may be truncated")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = {
                name: TensorInfo(str(entry["dtype"]), tuple(int(side) for side in entry["shape"]))
                for name, entry in header.items()
            }
            spans = sorted((int(a), int(b), name) for name, e in header.items() for a, b in [e["data_offsets"]])
        except (ValueError, TypeError, KeyError, AttributeError):
            raise not_safetensors(path, "its header is not what the format says") from None
    end = 0
    for first, last, name in spans:
        info = tensors[name]
        if info.dtype not in ITEM_BYTES:
            raise not_safetensors(path, f"tensor {name} has the unsupported type {info.dtype}")
        if first != end or last - first != prod(info.shape) * ITEM_BYTES[info.dtype]:
            raise not_safetensors(path, f"tensor {name} does not lie where its header says")
        end = last
    if size != 8 + length + end:
        raise CheckError(
            f"{path}: has {size} bytes where its header promises {8 + length + end}; the file is damaged. "
            "Copy it again from where it was made.",
            code="file_truncated",
        )
    return tensors


def not_safetensors(path: Path, why: str) -> CheckError:
    return CheckError(
        f"{path}: is not a valid safetensors file: {why}. Save the adapter with safetensors and copy it again.",
        code="not_safetensors",
    )
