"""An adapter version on disk: the folder train hands to serve.

`$POLYTONE_HOME/adapters/<name>/<digest12>/` holds exactly the files of `FILES`, and those of `OPTIONAL` that its
manifest names. Its name is the digest of what answers, so a version can never change under its id.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from .base import Base, Quantization
from .errors import CheckError, NotFoundError, combined
from .export import ExportReference
from .home import Home
from .models import FrozenModel, describe_problems
from .names import NAME_PATTERN
from .reference import REFERENCE, DriftReference, check_reference
from .tensors import TensorInfo, not_safetensors, read_header
from .version_id import DIGEST_LENGTH, VersionId

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MANIFEST = "manifest.json"
CARD = "README.md"
EVALUATION = "evaluation.json"
FILES = frozenset({CONFIG, WEIGHTS, MANIFEST, CARD, EVALUATION})
OPTIONAL = frozenset({REFERENCE})
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")

# What vLLM's LoRA can serve (read in vllm/lora/peft_helper.py and vllm/config/lora.py of 0.32); everything else it
# refuses or ignores.
SERVABLE_INITIALISATIONS = (True, False, "gaussian", "eva")
LORA_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
MAX_RANK = 512


class BaseReference(FrozenModel):
    id: str
    digest: str


class Peft(FrozenModel):
    """The shape of the adapter: rank, scaling numerator, the modules it sits on.

    `rslora`: it is scaled by alpha / sqrt(rank), else by alpha / rank.
    """

    rank: int
    alpha: float
    targets: list[str]
    rslora: bool = False


class DataSource(FrozenModel):
    """A file of rows; `export` leads from rows that came out of traffic back to the answers they were made from.

    `cut` rows among `rows` were longer than training took, `dropped` ones are not among them; 0 unless the recipe
    allowed it.
    """

    path: str
    sha256: str
    rows: int
    assistant_tokens: int
    cut: int = 0
    dropped: int = 0
    export: ExportReference | None = None


class Data(FrozenModel):
    train: DataSource
    held_out: DataSource


class Evaluation(FrozenModel):
    """Mean negative log-likelihood per assistant token on the held-out rows, in nats.

    `parent_loss` is that of the version this one continues, None where there is no parent.
    """

    base_loss: float
    adapter_loss: float
    tokens: int
    parent_loss: float | None = None


class Probe(FrozenModel):
    """One prompt of the fingerprint and what the trainer's model answered greedily.

    `logprobs` are the log-probabilities of `tokens` (nats), `mean_logprob` their mean, and `base_mean_logprob` the mean
    without the adapter; the distance of the two says how well the probe tells the adapter from the bare base.
    """

    messages: list[dict[str, str]]
    prompt_tokens: list[int] = Field(min_length=1)
    tokens: list[int] = Field(min_length=1)
    logprobs: list[float]
    mean_logprob: float
    base_mean_logprob: float

    @model_validator(mode="after")
    def _lengths(self) -> "Probe":
        if len(self.tokens) != len(self.logprobs):
            raise ValueError("tokens and logprobs have different lengths")
        return self


class Fingerprint(FrozenModel):
    dtype: str
    probes: list[Probe] = Field(min_length=1)


class Sampling(FrozenModel):
    """Sampling defaults of the voice, used where a request gives none."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class Manifest(FrozenModel, populate_by_name=True):
    """The content of manifest.json: what the version is, from what it was made, and how to recognise it."""

    schema_: Literal["polytone.adapter/1"] = Field("polytone.adapter/1", alias="schema")
    name: str = Field(pattern=f"^{NAME_PATTERN}$")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    base: BaseReference
    quantization: Quantization
    chat_template_sha256: str
    peft: Peft
    recipe: dict[str, Any]
    data: Data
    parent: str | None = None
    evaluation: Evaluation
    system_prompt: str | None = None
    sampling: Sampling | None = None
    fingerprint: Fingerprint
    drift_reference: DriftReference | None = None
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    licence: str

    @property
    def version(self) -> str:
        return str(VersionId(self.name, self.digest[:DIGEST_LENGTH]))


def digest_adapter(folder: Path) -> str:
    """sha256 over the adapter's configuration and weights, each with its name and length."""
    total = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (folder / name).open("rb") as file:
            part = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(json.dumps([name, (folder / name).stat().st_size, part]).encode())
    return total.hexdigest()


def read_version(home: Home, version: str) -> Manifest:
    """Read the manifest of a version and check that the folder is what its name says.

    Raises:
        NotFoundError: `version_not_found`.
        CheckError: as `read_folder`, or `wrong_digest` if the folder's name is not its content.
    """
    folder = home.adapter_folder(version)
    if not (folder / MANIFEST).is_file():
        known = ", ".join(list_versions(home)) or "none"
        raise NotFoundError(
            f"There is no version {version} under {home.adapters} (there: {known}).",
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
        CheckError: with every reason `inspect_folder` finds.
    """
    manifest, found = inspect_folder(folder)
    if manifest is None or found:
        raise combined(found)
    return manifest


def inspect_folder(folder: Path) -> tuple[Manifest | None, list[CheckError]]:
    """The manifest, if it can be read, and everything that is wrong with the folder.

    Codes: `not_safetensors`, `files_missing`, `files_unexpected`, `manifest_invalid`, `wrong_digest`,
    `file_truncated`, `config_invalid`, `peft_unsupported`, `tensors_mismatch` and `reference_mismatch`.
    """
    found = list(check_files(folder))
    manifest, config, tensors = None, None, None
    if (folder / MANIFEST).is_file():
        try:
            manifest = read_manifest(folder)
        except CheckError as error:
            found.append(error)
    if (folder / CONFIG).is_file():
        try:
            config = read_config(folder)
        except CheckError as error:
            found.append(error)
    if (folder / WEIGHTS).is_file():
        try:
            tensors = read_header(folder / WEIGHTS)
        except CheckError as error:
            found.append(error)
    if config is not None:
        found += check_config(folder, config)
    if config is not None and tensors is not None:
        found += check_tensors(folder, config, tensors)
    if manifest is not None and (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        found += check_manifest(folder, manifest, config)
    if manifest is not None:
        try:
            check_reference(folder, manifest.drift_reference)
        except CheckError as error:
            found.append(error)
    return manifest, found


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone, not compared with the files beside it.

    Raises:
        CheckError: `manifest_invalid`, naming every bad field.
    """
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except ValidationError as error:
        problems = describe_problems(error.errors())
        raise CheckError(f"{folder / MANIFEST}: {problems}.", code="manifest_invalid") from None


def check_files(folder: Path) -> Iterator[CheckError]:
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        yield not_safetensors(folder / pickles[0], "it is a pickle, which can run code when it is read")
    if missing := sorted(FILES - there):
        yield CheckError(f"{folder}: lacks {', '.join(missing)}.", code="files_missing")
    if unexpected := sorted(there - FILES - OPTIONAL):
        yield CheckError(f"{folder}: has unexpected {', '.join(unexpected)}.", code="files_unexpected")


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
        int(config["r"]), float(config["lora_alpha"]), list(config["target_modules"])
        dict(config.get("rank_pattern") or {}), dict(config.get("alpha_pattern") or {})
        [int(rank) for rank in (config.get("rank_pattern") or {}).values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckError(f"{path}: is not a PEFT LoRA configuration ({error!r}).", code="config_invalid") from None
    return dict(config)


def check_config(folder: Path, config: dict[str, Any]) -> Iterator[CheckError]:
    """What the engine would refuse or, worse, silently ignore."""
    unsupported = [
        text
        for bad, text in (
            (config.get("peft_type") != "LORA", f"peft_type {config.get('peft_type')!r}"),
            (config.get("use_dora"), "use_dora"),
            (config.get("bias", "none") != "none", f"bias {config.get('bias')!r}"),
            (config.get("lora_bias"), "lora_bias"),
            (config.get("use_qalora"), "use_qalora"),
            (config.get("use_bdlora"), "use_bdlora"),
            (config.get("modules_to_save"), "modules_to_save"),
            (config.get("alora_invocation_tokens"), "alora_invocation_tokens"),
            (config.get("layer_replication"), "layer_replication"),
            (config.get("trainable_token_indices"), "trainable_token_indices"),
            (
                config.get("init_lora_weights", True) not in SERVABLE_INITIALISATIONS,
                f"init_lora_weights {config.get('init_lora_weights')!r}",
            ),
        )
        if bad
    ]
    if unsupported:
        yield CheckError(
            f"{folder / CONFIG}: {', '.join(unsupported)} cannot be served. Train a plain LoRA.",
            code="peft_unsupported",
        )
    ranks = [int(config["r"]), *(int(rank) for rank in (config.get("rank_pattern") or {}).values())]
    if not all(1 <= rank <= MAX_RANK for rank in ranks) or not 0 < float(config["lora_alpha"]) < float("inf"):
        yield CheckError(
            f"{folder / CONFIG}: a rank of {ranks} is not between 1 and {MAX_RANK}, or lora_alpha "
            f"{config['lora_alpha']} is no scaling.",
            code="config_invalid",
        )


def check_tensors(folder: Path, config: dict[str, Any], tensors: dict[str, TensorInfo]) -> Iterator[CheckError]:
    pairs = lora_pairs(tensors)
    for name, info in tensors.items():
        if LORA_TENSOR.fullmatch(name) is None or len(info.shape) != 2:
            yield CheckError(f"{folder / WEIGHTS}: tensor {name} is not a LoRA matrix.", code="tensors_mismatch")
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            yield CheckError(f"{folder / WEIGHTS}: {module} has only one of A and B.", code="tensors_mismatch")
        elif not 1 <= pair["A"].shape[0] == pair["B"].shape[1] <= largest_rank(config):
            yield CheckError(
                f"{folder / WEIGHTS}: {module} has rank {pair['A'].shape[0]} and {pair['B'].shape[1]} where "
                f"{CONFIG} says {config['r']}.",
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


def check_manifest(folder: Path, manifest: Manifest, config: dict[str, Any] | None) -> Iterator[CheckError]:
    digest = digest_adapter(folder)
    if digest != manifest.digest:
        yield CheckError(
            f"{folder}: its files hash to {digest[:DIGEST_LENGTH]}, its manifest says "
            f"{manifest.digest[:DIGEST_LENGTH]}. A file was changed or damaged; copy the folder again.",
            code="wrong_digest",
        )
    if config is not None and manifest.peft.rank != int(config["r"]):
        yield CheckError(
            f"{folder / MANIFEST}: peft.rank is {manifest.peft.rank} where {CONFIG} says {config['r']}.",
            code="manifest_invalid",
            param="peft.rank",
        )


def largest_rank(config: dict[str, Any]) -> int:
    return max([int(config["r"]), *(int(rank) for rank in (config.get("rank_pattern") or {}).values())])


def check_servable(manifest: Manifest, base: Base, max_rank: int) -> None:
    """Refuse a version this server cannot answer with exactly as it was trained.

    Raises:
        CheckError: with every reason of `wrong_base`, `wrong_quantization`, `wrong_chat_template`, `rank_too_high`.
    """
    if found := list(unservable(manifest, base, max_rank)):
        raise combined(found)


def unservable(manifest: Manifest, base: Base, max_rank: int) -> Iterator[CheckError]:
    who = f"{manifest.version}: manifest.json:"
    if (manifest.base.id, manifest.base.digest) != (base.id, base.digest):
        yield CheckError(
            f"{who} base: was trained on {manifest.base.id} ({manifest.base.digest[:12]}); this server runs "
            f"{base.id} ({base.digest[:12]}). Train it again on this base or serve that one.",
            code="wrong_base",
            param="base",
        )
    if manifest.quantization != base.quantization:
        yield CheckError(
            f"{who} quantization: was trained on {manifest.quantization}, the base is served as "
            f"{base.quantization}. Train it again.",
            code="wrong_quantization",
            param="quantization",
        )
    if manifest.chat_template_sha256 != base.chat_template_sha256:
        yield CheckError(
            f"{who} chat_template_sha256: was trained with another chat template than this base has. Train it again.",
            code="wrong_chat_template",
            param="chat_template_sha256",
        )
    if manifest.peft.rank > max_rank:
        yield CheckError(
            f"{who} peft.rank: is {manifest.peft.rank}; this server takes at most {max_rank}. Train with a lower "
            f"rank or start the server with POLYTONE_MAX_LORA_RANK={manifest.peft.rank}.",
            code="rank_too_high",
            param="peft.rank",
        )


def list_versions(home: Home) -> list[str]:
    """Ids of all whole versions on disk, oldest manifest first."""
    written: dict[str, float] = {}
    # Hidden names are what a writer has under its hands: they may be gone while one looks.
    for manifest in home.adapters.glob(f"[!.]*/[!.]*/{MANIFEST}"):
        with contextlib.suppress(FileNotFoundError):
            written[str(VersionId(*manifest.parts[-3:-1]))] = manifest.stat().st_mtime
    return sorted(written, key=written.__getitem__)
