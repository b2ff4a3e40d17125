"""Names, types and shapes of the tensors in a safetensors file, without loading one.

The library checks that the header fits the file: its offsets leave no gap, and no byte is missing or left over.
"""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .errors import CheckError

FLOATS = ("F64", "F32", "F16", "BF16")
PICKLE_MAGIC = (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK")  # PyTorch zips its pickles
INCOMPLETE = "incomplete metadata"  # safetensors' words for a file with fewer or more bytes than its header describes


@dataclass(frozen=True)
class TensorInfo:
    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a file by their names.

    Raises:
        CheckError: `not_safetensors`, or `file_truncated` if the file has other bytes than its header describes.
    """
    with path.open("rb") as file:
        if file.read(2) in PICKLE_MAGIC:
            raise not_safetensors(path, "it is a pickle, which can run code when it is read")
    try:
        with safe_open(path, "np") as opened:
            names = opened.keys()
            slices = {name: opened.get_slice(name) for name in names}
            tensors = {name: TensorInfo(one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except SafetensorError as error:
        if INCOMPLETE in str(error):
            raise truncated(path) from None
        raise not_safetensors(path, str(error)) from None
    for name, info in tensors.items():
        if info.dtype not in FLOATS:
            raise not_safetensors(path, f"tensor {name} has the unsupported type {info.dtype}")
    return tensors


def truncated(path: Path) -> CheckError:
    return CheckError(
        f"{path}: has {path.stat().st_size} bytes, more or fewer than its header describes; the file is "
        "damaged. Copy it again from where it was made.",
        code="file_truncated",
    )


def not_safetensors(path: Path, why: str) -> CheckError:
    return CheckError(
        f"{path}: is not a valid safetensors file: {why}. Save the adapter with safetensors and copy it again.",
        code="not_safetensors",
    )
