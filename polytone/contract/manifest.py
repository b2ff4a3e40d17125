"""The manifest of an adapter version: what it is, what it was made from, and how to recognise it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from .base import Quantization
from .errors import CheckError
from .export import ExportReference
from .models import FrozenModel, describe_problems
from .names import NAME_PATTERN
from .reference import DriftReference
from .version_id import DIGEST_LENGTH, VersionId

MANIFEST = "manifest.json"


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
