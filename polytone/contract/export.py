"""The manifest of a dataset exported from traffic: `X.manifest.json` beside `X.jsonl` says where its rows came from."""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from .digests import digest_file
from .errors import InputError
from .models import FrozenModel, describe_problems


class ExportFormat(StrEnum):
    """TRL's kinds of rows."""

    SFT = "sft"
    KTO = "kto"
    DPO = "dpo"


class ExportSplit(StrEnum):
    """Rows to train on, and rows kept apart to judge the result by."""

    TRAIN = "train"
    HELD_OUT = "held_out"


class ExportManifest(FrozenModel, populate_by_name=True):
    """The content of X.manifest.json.

    `sha256` is that of the rows file. `completions` are the ids of the answers the rows were made from, `versions` the
    versions that gave them, and `left_out` counts what was not exported by reason. `adapter` is the voice; None where
    the rows may be of several.
    """

    schema_: Literal["polytone.export/1"] = Field("polytone.export/1", alias="schema")
    format: ExportFormat
    split: ExportSplit
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rows: int = Field(ge=0)
    adapter: str | None
    completions: list[str]
    versions: list[str] = Field(default_factory=list)
    left_out: dict[str, int]
    filters: dict[str, Any]
    created: datetime


class ExportReference(FrozenModel):
    """The part of the manifest that a version trained on the export keeps: enough to find every answer behind it."""

    sha256: str
    format: ExportFormat
    adapter: str | None
    completions: list[str]


def export_manifest_path(rows: Path) -> Path:
    return rows.with_suffix(".manifest.json")


def read_export_manifest(rows: Path) -> ExportManifest | None:
    """Read the manifest beside a file of rows; None if there is none.

    Raises:
        InputError: `export_invalid`, or `export_mismatch` if the rows were changed since their export.
    """
    path = export_manifest_path(rows)
    if not path.is_file():
        return None
    try:
        manifest = ExportManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problems = describe_problems(error.errors())
        raise InputError(
            f"{path}: {problems}. Export the rows again, or remove this file to use them without their origin.",
            code="export_invalid",
        ) from None
    digest = digest_file(rows)
    if digest != manifest.sha256:
        raise InputError(
            f"{rows}: sha256: is {digest[:12]} where {path.name} says {manifest.sha256[:12]}; the rows were changed "
            "after their export. Export them again, or remove the manifest to use them without their origin.",
            code="export_mismatch",
            param="sha256",
        )
    return manifest
