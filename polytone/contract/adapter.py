"""An adapter version on disk: the folder train hands to serve.

`$POLYTONE_HOME/adapters/<voice>/<digest12>/` holds exactly the files of `FILES`, and may hold those of `OPTIONAL`. The
folder is named by the digest of configuration and weights, so a version cannot change under its id.
"""

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .base import Base
from .digests import digest_file
from .errors import CheckError, NotFoundError, combined
from .home import Home
from .manifest import MANIFEST, Manifest, read_manifest
from .models import FrozenModel, describe_problems
from .reference import REFERENCE, check_reference
from .tensors import TensorInfo, not_safetensors, read_header
from .version_id import DIGEST_LENGTH, VersionId

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
EVALUATION = "evaluation.json"
FILES = frozenset({CONFIG, WEIGHTS, MANIFEST, CARD})
# The manifest names the reference if there is one. It repeats the evaluation, which versions had as a file once.
OPTIONAL = frozenset({REFERENCE, EVALUATION})
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")

# vLLM 0.32 serves these initialisations and refuses or ignores these features (its lora/peft_helper.py and
# config/lora.py).
SERVABLE_INITIALISATIONS = (True, False, "gaussian", "eva")
UNSERVABLE_FEATURES = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "modules_to_save",
    "alora_invocation_tokens",
    "layer_replication",
    "trainable_token_indices",
)
LORA_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
MAX_RANK = 512


class PeftConfig(FrozenModel, extra="allow"):
    """The content of adapter_config.json, as far as it decides what an engine answers."""

    peft_type: Any = None
    r: int
    lora_alpha: float
    target_modules: list[str] | str
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    bias: Any = "none"
    init_lora_weights: Any = True

    @property
    def ranks(self) -> list[int]:
        """The rank of most modules, then those that a pattern gives to some."""
        return [self.r, *(self.rank_pattern or {}).values()]

    def unsupported(self) -> list[str]:
        """Settings that cannot be served."""
        fixed = {
            "peft_type": self.peft_type == "LORA",
            "bias": self.bias == "none",
            "init_lora_weights": self.init_lora_weights in SERVABLE_INITIALISATIONS,
        }
        features = [name for name in UNSERVABLE_FEATURES if (self.model_extra or {}).get(name)]
        return [f"{name} {getattr(self, name)!r}" for name, servable in fixed.items() if not servable] + features


def digest_adapter(folder: Path) -> str:
    """SHA-256 over the names, lengths and contents of the adapter's configuration and weights."""
    total = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        path = folder / name
        total.update(json.dumps([name, path.stat().st_size, digest_file(path)]).encode())
    return total.hexdigest()


def read_version(home: Home, version: str) -> Manifest:
    """Read the manifest of a version and check its folder.

    Raises:
        NotFoundError: `version_not_found`.
        CheckError: as `read_folder`, or `wrong_digest` if the folder holds another version than its name says.
    """
    folder = home.adapter_folder(version)
    if not (folder / MANIFEST).is_file():
        known = ", ".join(list_versions(home)) or "none"
        raise NotFoundError(
            f"There is no version {version} under {home.adapters} (found: {known}).",
            code="version_not_found",
            param="version",
        )
    manifest = read_folder(folder)
    if manifest.version != version:
        raise CheckError(
            f"{folder}: holds {manifest.version}, not {version}. Restore the folder from a copy.",
            code="wrong_digest",
        )
    return manifest


def read_folder(folder: Path) -> Manifest:
    """Read and check an adapter folder: its files, its manifest, its digest and its tensors.

    Raises:
        CheckError: with every problem that `inspect_folder` finds.
    """
    manifest, problems = inspect_folder(folder)
    if manifest is None or problems:
        raise combined(problems)
    return manifest


def inspect_folder(folder: Path) -> tuple[Manifest | None, list[CheckError]]:
    """The manifest, if it can be read, and every problem of the folder.

    Codes: `not_safetensors`, `files_missing`, `files_unexpected`, `manifest_invalid`, `wrong_digest`,
    `file_truncated`, `config_invalid`, `peft_unsupported`, `tensors_mismatch` and `reference_mismatch`.
    """
    problems = list(check_files(folder))
    manifest, config, tensors = None, None, None
    if (folder / MANIFEST).is_file():
        with collected(problems):
            manifest = read_manifest(folder)
    if (folder / CONFIG).is_file():
        with collected(problems):
            config = read_config(folder)
    if (folder / WEIGHTS).is_file():
        with collected(problems):
            tensors = read_header(folder / WEIGHTS)
    if config is not None:
        problems += check_config(folder, config)
    if config is not None and tensors is not None:
        problems += check_tensors(folder, config, tensors)
    if manifest is not None and (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        problems += check_manifest(folder, manifest, config)
    if manifest is not None:
        with collected(problems):
            check_reference(folder, manifest.drift_reference)
    return manifest, problems


@contextlib.contextmanager
def collected(problems: list[CheckError]) -> Iterator[None]:
    """Add a CheckError that the block raises to `problems`, and go on."""
    try:
        yield
    except CheckError as error:
        problems.append(error)


def check_files(folder: Path) -> Iterator[CheckError]:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        yield not_safetensors(folder / pickles[0], "it is a pickle, which can run code when it is read")
    if missing := sorted(FILES - names):
        yield CheckError(f"{folder}: lacks {', '.join(missing)}.", code="files_missing")
    if unexpected := sorted(names - FILES - OPTIONAL):
        yield CheckError(f"{folder}: has unexpected {', '.join(unexpected)}.", code="files_unexpected")


def read_config(folder: Path) -> PeftConfig:
    """PEFT's configuration of the adapter.

    Raises:
        CheckError: `config_invalid`, naming every bad field.
    """
    path = folder / CONFIG
    try:
        return PeftConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problems = describe_problems(error.errors())
        raise CheckError(f"{path}: is not a PEFT LoRA configuration: {problems}.", code="config_invalid") from None


def check_config(folder: Path, config: PeftConfig) -> Iterator[CheckError]:
    """Find what the engine would refuse or, worse, silently ignore."""
    if unsupported := config.unsupported():
        yield CheckError(
            f"{folder / CONFIG}: {', '.join(unsupported)} cannot be served. Train a plain LoRA.",
            code="peft_unsupported",
        )
    wrong_ranks = [rank for rank in config.ranks if not 1 <= rank <= MAX_RANK]
    problems = [f"the rank {rank} is not between 1 and {MAX_RANK}" for rank in wrong_ranks]
    if not 0 < config.lora_alpha < math.inf:
        problems.append(f"lora_alpha {config.lora_alpha} is not a positive number")
    if problems:
        yield CheckError(f"{folder / CONFIG}: {'; '.join(problems)}.", code="config_invalid")


def check_tensors(folder: Path, config: PeftConfig, tensors: dict[str, TensorInfo]) -> Iterator[CheckError]:
    pairs = lora_pairs(tensors)
    for name, info in tensors.items():
        if LORA_TENSOR.fullmatch(name) is None or len(info.shape) != 2:
            yield CheckError(f"{folder / WEIGHTS}: tensor {name} is not a LoRA matrix.", code="tensors_mismatch")
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            yield CheckError(f"{folder / WEIGHTS}: {module} has only one of A and B.", code="tensors_mismatch")
        elif not 1 <= pair["A"].shape[0] == pair["B"].shape[1] <= max(config.ranks):
            yield CheckError(
                f"{folder / WEIGHTS}: {module} has rank {pair['A'].shape[0]} and {pair['B'].shape[1]} where "
                f"{CONFIG} says {config.r}.",
                code="tensors_mismatch",
            )
    if not pairs:
        yield CheckError(f"{folder / WEIGHTS}: holds no LoRA matrices.", code="tensors_mismatch")


def lora_pairs(tensors: dict[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    """Module -> its A (rank, in) and B (out, rank)."""
    pairs: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        match = LORA_TENSOR.fullmatch(name)
        if match is not None and len(info.shape) == 2:
            pairs.setdefault(match[1], {})[match[2]] = info
    return pairs


def check_manifest(folder: Path, manifest: Manifest, config: PeftConfig | None) -> Iterator[CheckError]:
    digest = digest_adapter(folder)
    if digest != manifest.digest:
        yield CheckError(
            f"{folder}: its files hash to {digest[:DIGEST_LENGTH]}, its manifest says "
            f"{manifest.digest[:DIGEST_LENGTH]}. A file was changed or damaged; copy the folder again.",
            code="wrong_digest",
        )
    if config is not None and manifest.peft.rank != config.r:
        yield CheckError(
            f"{folder / MANIFEST}: peft.rank is {manifest.peft.rank} where {CONFIG} says {config.r}.",
            code="manifest_invalid",
            param="peft.rank",
        )


def check_servable(manifest: Manifest, base: Base, max_rank: int) -> None:
    """Refuse a version with which this server cannot answer exactly as it was trained.

    Raises:
        CheckError: with every problem of `wrong_base`, `wrong_quantization`, `wrong_chat_template`, `rank_too_high`.
    """
    if problems := list(unservable(manifest, base, max_rank)):
        raise combined(problems)


def unservable(manifest: Manifest, base: Base, max_rank: int) -> Iterator[CheckError]:
    field_of = f"{manifest.version}: manifest.json:"
    if (manifest.base.id, manifest.base.digest) != (base.id, base.digest):
        yield CheckError(
            f"{field_of} base: was trained on {manifest.base.id} ({manifest.base.digest[:12]}); this server runs "
            f"{base.id} ({base.digest[:12]}). Train it again on this base or serve that one.",
            code="wrong_base",
            param="base",
        )
    if manifest.quantization != base.quantization:
        yield CheckError(
            f"{field_of} quantization: was trained on {manifest.quantization}, the base is served as "
            f"{base.quantization}. Train it again.",
            code="wrong_quantization",
            param="quantization",
        )
    if manifest.chat_template_sha256 != base.chat_template_sha256:
        yield CheckError(
            f"{field_of} chat_template_sha256: was trained with another chat template than the base's. Train it again.",
            code="wrong_chat_template",
            param="chat_template_sha256",
        )
    if manifest.peft.rank > max_rank:
        yield CheckError(
            f"{field_of} peft.rank: is {manifest.peft.rank}; this server takes at most {max_rank}. Train with a lower "
            f"rank or start the server with POLYTONE_MAX_LORA_RANK={manifest.peft.rank}.",
            code="rank_too_high",
            param="peft.rank",
        )


def list_versions(home: Home) -> list[str]:
    """Ids of all complete versions on disk, the oldest manifest first."""
    written: dict[str, float] = {}
    # Hidden folders belong to a writer and may be gone at any moment.
    for manifest in home.adapters.glob(f"[!.]*/[!.]*/{MANIFEST}"):
        with contextlib.suppress(FileNotFoundError):
            written[str(VersionId(*manifest.parts[-3:-1]))] = manifest.stat().st_mtime
    return sorted(written, key=written.__getitem__)
