"""Checks of version files that came from elsewhere."""

from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from polytone.contract.adapter import WEIGHTS, inspect_folder, unservable
from polytone.contract.base import Base
from polytone.contract.errors import CheckError
from polytone.contract.manifest import Manifest
from polytone.contract.modules import check_against_base
from polytone.contract.tensors import read_header

SHOWN = 5


def inspect_received(
    folder: Path, name: str, base: Base, shapes: dict[str, tuple[int, ...]], max_rank: int
) -> tuple[Manifest | None, list[CheckError]]:
    """As `inspect_folder`, for files that came from elsewhere to be served here as a version of `name`."""
    manifest, found = inspect_folder(folder)
    if manifest is not None:
        found += check_name_matches(manifest, name)
        found += unservable(manifest, base, max_rank)
    if not any(error.code in ("not_safetensors", "file_truncated", "files_missing") for error in found):
        found += check_against_base(read_header(folder / WEIGHTS), shapes)
        found += check_values(folder)
    return manifest, found


def check_name_matches(manifest: Manifest, name: str) -> Iterator[CheckError]:
    if manifest.name != name:
        yield CheckError(
            f"manifest.json: name: is {manifest.name!r}, the upload is for {name!r}.",
            code="manifest_invalid",
            param="name",
        )


def check_values(folder: Path) -> Iterator[CheckError]:
    """Weights must be numbers, and change something."""
    import torch  # takes seconds to import, and is needed here only

    broken, changes = [], False
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                tensor: torch.Tensor = tensors.get_tensor(name)
                if not bool(torch.isfinite(tensor).all()):
                    broken.append(name)
                changes = changes or (".lora_B." in name and bool(tensor.any()))
    except (SafetensorError, OSError, ValueError) as error:
        yield CheckError(f"{WEIGHTS}: cannot be read ({error}).", code="not_safetensors")
        return
    if broken:
        more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        yield CheckError(
            f"{WEIGHTS}: {', '.join(broken[:SHOWN])}{more} hold values that are not finite numbers.",
            code="weights_not_finite",
        )
    elif not changes:
        yield CheckError(f"{WEIGHTS}: every B is zero, so the adapter changes nothing.", code="weights_zero")
