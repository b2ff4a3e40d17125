"""The drift reference of a version: its answers and its base's to held-out prompts when it was trained.

`reference.jsonl` in the version's folder has one `ReferenceRow` per line; the manifest names its digest.
"""

import hashlib
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field, ValidationError

from .digests import digest_file
from .errors import CheckError
from .models import FrozenModel, describe_problem
from .rows import Message

REFERENCE = "reference.jsonl"
LEAST_ROWS = 20  # serving does not use a reference with fewer
MAX_BYTES = 16 << 20  # three times a thousand prompts of a thousand tokens

FinishReason: TypeAlias = Literal["stop", "length"]


class ReferenceRow(FrozenModel):
    """One held-out prompt with its system prompt, and the two answers to it.

    Tokens are counted as in the usage of the API: the token that ends the turn is one of them.
    """

    messages: list[Message] = Field(min_length=1)
    reply: str
    reply_tokens: int = Field(ge=0)
    finish_reason: FinishReason
    base_reply: str
    base_reply_tokens: int = Field(ge=0)
    base_finish_reason: FinishReason


class DriftReference(FrozenModel):
    """The reference as the manifest describes it: rows, digest of the file, and the longest reply in tokens."""

    rows: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    max_tokens: int = Field(ge=1)


def write_reference(folder: Path, rows: list[ReferenceRow]) -> None:
    (folder / REFERENCE).write_bytes(as_lines(rows))


def describe_reference(rows: list[ReferenceRow], max_tokens: int) -> DriftReference | None:
    """The manifest's description of `rows`; None if there are none."""
    if not rows:
        return None
    return DriftReference(rows=len(rows), sha256=hashlib.sha256(as_lines(rows)).hexdigest(), max_tokens=max_tokens)


def as_lines(rows: list[ReferenceRow]) -> bytes:
    return "".join(row.model_dump_json() + "\n" for row in rows).encode()


def read_reference(folder: Path) -> list[ReferenceRow]:
    """The reference in a version's folder; empty if it has none.

    Raises:
        CheckError: `reference_mismatch`, naming the first bad line.
    """
    path = folder / REFERENCE
    if not path.is_file():
        return []
    if path.stat().st_size > MAX_BYTES:
        raise mismatch(path, f"has more than {MAX_BYTES} bytes")
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            rows.append(ReferenceRow.model_validate_json(line))
        except ValidationError as error:
            raise mismatch(path, f"line {number}: {describe_problem(error.errors()[0])}") from None
    return rows


def check_reference(folder: Path, named: DriftReference | None) -> None:
    """Refuse a reference other than the one that the manifest describes.

    Raises:
        CheckError: `reference_mismatch`.
    """
    path = folder / REFERENCE
    if named is None:
        if path.exists():
            raise mismatch(path, "is not in the manifest")
        return
    if not path.is_file():
        raise mismatch(path, "is missing, though the manifest describes it")
    digest = digest_file(path)
    if digest != named.sha256:
        raise mismatch(path, f"hashes to {digest[:12]} where the manifest says {named.sha256[:12]}")
    if (count := len(read_reference(folder))) != named.rows:
        raise mismatch(path, f"has {count} rows where the manifest says {named.rows}")


def mismatch(path: Path, what: str) -> CheckError:
    return CheckError(f"{path}: {what}. Copy the folder again.", code="reference_mismatch", param="drift_reference")
