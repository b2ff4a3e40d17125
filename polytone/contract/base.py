"""A prepared base model on disk: base.json, source/ (unquantized weights) and nf4-dense/ (NF4 values, dense)."""

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from .digests import digest_file
from .errors import CheckError, NotFoundError
from .home import Home
from .models import FrozenModel, describe_problems
from .tensors import read_header

DIGESTED = ("config.json", "tokenizer.json", "tokenizer.model")


class Quantization(FrozenModel):
    """The quantization of the base's weights. Training and serving must agree on every field."""

    method: Literal["nf4"] = "nf4"
    double_quantization: bool = True
    block_size: int = 64


class Base(FrozenModel, populate_by_name=True):
    """The content of base.json.

    `digest` is a SHA-256 over the configuration, the tokenizer and the unquantized weights. Two machines that prepared
    the same model agree on it.
    """

    schema_: Literal["polytone.base/1"] = Field("polytone.base/1", alias="schema")
    id: str
    source: str
    digest: str
    licence: str
    quantization: Quantization
    chat_template_sha256: str
    max_length: int
    created: datetime


def base_folder(home: Home, base_id: str) -> Path:
    return home.bases / base_id


def load_base(home: Home, base_id: str) -> Base:
    """Read base.json of a prepared base.

    Raises:
        NotFoundError: `base_not_found`, naming those that are prepared.
        CheckError: `base_damaged`.
    """
    path = base_folder(home, base_id) / "base.json"
    if not path.is_file():
        known = ", ".join(list_bases(home)) or "none"
        raise NotFoundError(
            f"There is no prepared base {base_id!r} under {home.bases} (found: {known}). Prepare it: "
            f"polytone base prepare {base_id}, or under this name from a folder or the hub: "
            f"polytone base prepare MODEL --id {base_id}",
            code="base_not_found",
            param="base",
        )
    try:
        return Base.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problems = describe_problems(error.errors())
        raise CheckError(f"{path}: {problems}. Prepare the base again.", code="base_damaged") from None


def list_bases(home: Home) -> list[str]:
    return sorted(path.parent.name for path in home.bases.glob("*/base.json"))


def digest_model(folder: Path) -> str:
    """SHA-256 over names and contents of configuration, tokenizer and safetensors weights."""
    total = hashlib.sha256()
    names = [name for name in DIGESTED if (folder / name).is_file()]
    for name in [*names, *sorted(path.name for path in folder.glob("*.safetensors"))]:
        total.update(json.dumps([name, digest_file(folder / name)]).encode())
    return total.hexdigest()


def module_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Module -> shape (out, in) of its weight, read from the headers of a model folder's safetensors files."""
    return {
        name.removesuffix(".weight"): info.shape
        for path in sorted(folder.glob("*.safetensors"))
        for name, info in read_header(path).items()
        if name.endswith(".weight")
    }
