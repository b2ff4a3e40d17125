"""The shape of a model, read from its Hugging Face config.json without its weights."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polytone.contract.errors import InputError
from polytone.contract.models import describe_problem

# Model types whose layers are attention of four and a gated MLP of three linear layers.
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
DEFAULT_HEAD_DIMS = {"qwen3": 128, "gemma": 256, "gemma2": 256}
# Configuration fields of models that change their logits after the head.
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier")
Count = Annotated[int, Field(ge=1)]


class ConfigFile(BaseModel):
    """The fields of a config.json that memory depends on; the others are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool = False
    mlp_bias: bool = False


@dataclass(frozen=True)
class Linear:
    """A linear layer of every block: its weight is (outputs, inputs)."""

    name: str
    outputs: int
    inputs: int
    bias: bool

    @property
    def weights(self) -> int:
        return self.outputs * self.inputs


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder-only model, all in numbers of elements.

    `linears` and `norms` (over the hidden size) are those of one block; with `head_norms` queries and keys are
    normalized too; with `plain_head` the logits are the head's product and nothing else.
    """

    name: str
    model_type: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    tied: bool
    linears: tuple[Linear, ...]
    norms: int
    head_norms: bool
    plain_head: bool

    @property
    def linear_weights(self) -> int:
        """Weights that NF4 quantizes: every linear layer but the head."""
        return self.layers * sum(linear.weights for linear in self.linears)

    @property
    def other_weights(self) -> int:
        """Embedding, head where it is not the embedding, norms and biases: never quantized."""
        biases = sum(linear.outputs for linear in self.linears if linear.bias)
        norms = self.norms * self.hidden + (2 * self.head_dim if self.head_norms else 0)
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * (biases + norms) + self.hidden

    @property
    def parameters(self) -> int:
        return self.linear_weights + self.other_weights

    @property
    def queries(self) -> int:
        """Width of a token's queries, all heads together."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of a token's keys, and of its values."""
        return self.key_value_heads * self.head_dim

    def adapter_weights(self, rank: int, targets: tuple[str, ...]) -> int:
        """Trainable parameters of LoRA (Hu et al. 2021) on the named linear layers; no names mean all of them."""
        chosen = self.targeted(targets)
        return self.layers * sum(rank * (linear.inputs + linear.outputs) for linear in chosen)

    def targeted(self, targets: tuple[str, ...]) -> tuple[Linear, ...]:
        return tuple(linear for linear in self.linears if not targets or linear.name in targets)


def read_shape(path: Path, name: str) -> Shape:
    """The shape in a config.json, or in the one of a folder.

    Raises:
        InputError: `config_not_found`, `model_config_invalid` with every bad field, `model_unsupported`.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror or error}). Name a config.json or a folder that has one.",
            code="config_not_found",
            param="model",
        ) from None
    except ValueError as error:
        raise InputError(f"{file}: is not JSON ({error}).", code="model_config_invalid", param="model") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: must be a JSON object.", code="model_config_invalid", param="model")
    return shape_of(content, name, str(file))


def shape_of(content: Mapping[str, Any], name: str, where: str = "config") -> Shape:
    """The shape that the content of a config.json describes.

    Raises:
        InputError: `model_unsupported` for a type of model whose layers are others, `model_config_invalid`.
    """
    model_type = str(content.get("model_type"))
    if model_type not in MODEL_TYPES:
        raise InputError(
            f"{where}: model_type {model_type!r} has layers that cannot be estimated here. "
            f"Known types: {', '.join(MODEL_TYPES)}.",
            code="model_unsupported",
            param="model",
        )
    try:
        config = ConfigFile.model_validate(dict(content))
    except ValidationError as error:
        problems = "\n".join(f"{where}: {describe_problem(problem)}" for problem in error.errors())
        raise InputError(problems, code="model_config_invalid", param="model") from None
    heads = config.num_attention_heads
    return Shape(
        name=name,
        model_type=model_type,
        vocabulary=config.vocab_size,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=heads,
        key_value_heads=config.num_key_value_heads or heads,
        head_dim=head_dim(config, model_type),
        tied=model_type.startswith("gemma") if config.tie_word_embeddings is None else config.tie_word_embeddings,
        linears=tuple(linears_of(config, model_type)),
        norms=4 if model_type == "gemma2" else 2,
        head_norms=model_type == "qwen3",
        plain_head=all(content.get(key) is None for key in LOGIT_CHANGES) and model_type != "gemma2",
    )


def linears_of(config: ConfigFile, model_type: str) -> Iterator[Linear]:
    """The linear layers of a block, with the biases that the type of model gives them."""
    hidden, wide, dim = config.hidden_size, config.intermediate_size, head_dim(config, model_type)
    queries = config.num_attention_heads * dim
    keys = (config.num_key_value_heads or config.num_attention_heads) * dim
    configured = config.attention_bias and model_type != "mistral"
    attention = model_type == "qwen2" or configured
    yield Linear("q_proj", queries, hidden, attention)
    yield Linear("k_proj", keys, hidden, attention)
    yield Linear("v_proj", keys, hidden, attention)
    yield Linear("o_proj", hidden, queries, configured and model_type != "qwen2")
    mlp = config.mlp_bias and model_type == "llama"
    yield Linear("gate_proj", wide, hidden, mlp)
    yield Linear("up_proj", wide, hidden, mlp)
    yield Linear("down_proj", hidden, wide, mlp)


def head_dim(config: ConfigFile, model_type: str) -> int:
    return (
        config.head_dim or DEFAULT_HEAD_DIMS.get(model_type) or max(1, config.hidden_size // config.num_attention_heads)
    )
