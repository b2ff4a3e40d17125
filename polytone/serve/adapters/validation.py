"""Checks of version files that came from elsewhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from polytone.contract.adapter import WEIGHTS, inspect_folder, unservable
from polytone.contract.base import Base, base_folder, module_shapes
from polytone.contract.errors import CheckError
from polytone.contract.home import Home
from polytone.contract.manifest import Manifest
from polytone.contract.modules import check_against_base
from polytone.contract.tensors import read_header

MOST_NAMES = 5
UNREADABLE = frozenset({"not_safetensors", "file_truncated", "files_missing"})


@dataclass(frozen=True)
class ServedBase:
    """What a version must fit to be served here: the base in this home, and the highest rank of an adapter."""

    home: Home
    base: Base
    max_rank: int

    def module_shapes(self) -> dict[str, tuple[int, ...]]:
        """Module -> shape (out, in) of its weight."""
        return module_shapes(base_folder(self.home, self.base.id) / "source")


def inspect_received(folder: Path, voice: str, served: ServedBase) -> tuple[Manifest | None, list[CheckError]]:
    """Check files as `inspect_folder` does, and that they can be served here as a version of `voice`.

    Returns the manifest, if it can be read, and every problem.
    """
    manifest, problems = inspect_folder(folder)
    if manifest is not None:
        problems += check_voice(manifest, voice)
        problems += unservable(manifest, served.base, served.max_rank)
    if not any(problem.code in UNREADABLE for problem in problems):
        problems += check_against_base(read_header(folder / WEIGHTS), served.module_shapes())
        problems += check_values(folder)
    return manifest, problems


def check_voice(manifest: Manifest, voice: str) -> Iterator[CheckError]:
    if manifest.name != voice:
        yield CheckError(
            f"manifest.json: name: is {manifest.name!r}, the upload is for {voice!r}.",
            code="manifest_invalid",
            param="name",
        )


def check_values(folder: Path) -> Iterator[CheckError]:
    """Check that the weights are finite numbers and change something."""
    import torch  # takes seconds to import, and only this function needs it

    not_finite, changes = [], False
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                tensor: torch.Tensor = tensors.get_tensor(name)
                if not bool(torch.isfinite(tensor).all()):
                    not_finite.append(name)
                changes = changes or (".lora_B." in name and bool(tensor.any()))
    except (SafetensorError, OSError, ValueError) as error:
        yield CheckError(f"{WEIGHTS}: cannot be read ({error}).", code="not_safetensors")
        return
    if not_finite:
        more = f" and {len(not_finite) - MOST_NAMES} more" if len(not_finite) > MOST_NAMES else ""
        yield CheckError(
            f"{WEIGHTS}: {', '.join(not_finite[:MOST_NAMES])}{more} hold values that are not finite numbers.",
            code="weights_not_finite",
        )
    elif not changes:
        yield CheckError(f"{WEIGHTS}: every B is zero, so the adapter changes nothing.", code="weights_zero")
