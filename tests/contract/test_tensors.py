"""Headers of safetensors files: what is read, and what is refused with which code."""

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from polytone.contract.errors import CheckError
from polytone.contract.tensors import TensorInfo, read_header

WHOLE = save({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float16)})


def with_header(header: Any, data: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def one(dtype: str, shape: list[int], first: int, last: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def test_names_types_and_shapes(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(WHOLE)
    assert read_header(file) == {"a": TensorInfo("F32", (2, 3)), "b": TensorInfo("F16", (4,))}
    file.write_bytes(with_header({"a": one("BF16", [2, 1], 0, 4)}, bytes(4)))
    assert read_header(file) == {"a": TensorInfo("BF16", (2, 1))}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (WHOLE[:-10], "file_truncated"),
        (WHOLE + b"x", "file_truncated"),
        (WHOLE[:20], "not_safetensors"),
        (b"12345", "not_safetensors"),
        (b"", "not_safetensors"),
        (pickle.dumps({"a": 1}), "not_safetensors"),
        (struct.pack("<Q", 1 << 40) + b"{}", "not_safetensors"),
        (with_header([], b""), "not_safetensors"),
        (with_header({"a": one("F32", [1], 4, 8)}, bytes(8)), "not_safetensors"),
        (with_header({"a": one("F32", [1], 0, 4), "b": one("F32", [1], 2, 6)}, bytes(6)), "not_safetensors"),
        (with_header({"a": one("F32", [2], 0, 4)}, bytes(4)), "not_safetensors"),
        (with_header({"a": one("I8", [4], 0, 4)}, bytes(4)), "not_safetensors"),
    ],
    ids=[
        "cut",
        "longer",
        "cut-header",
        "five-bytes",
        "empty",
        "pickle",
        "huge-header",
        "list",
        "gap",
        "overlap",
        "wrong-size",
        "integers",
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: bytes, code: str) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckError, match=r"x\.safetensors") as caught:
        read_header(file)
    assert caught.value.code == code
