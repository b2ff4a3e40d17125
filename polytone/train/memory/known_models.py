"""Shapes of well-known models by name, so that an estimate needs no download, and the search for other shapes."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from polytone.contract.base import base_folder, list_bases
from polytone.contract.errors import InputError, UnavailableError
from polytone.contract.home import Home

from .shape import Shape, read_shape, shape_of

EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"
# From the models' config.json: type, vocabulary, hidden, MLP width, layers, heads, key-value heads, head width, tied.
KNOWN: Mapping[str, tuple[str, int, int, int, int, int, int, int, bool]] = MappingProxyType(
    {
        EMBEDDED: ("llama", 49152, 576, 1536, 30, 9, 3, 64, True),
        "HuggingFaceTB/SmolLM2-135M": ("llama", 49152, 576, 1536, 30, 9, 3, 64, True),
        "HuggingFaceTB/SmolLM2-360M": ("llama", 49152, 960, 2560, 32, 15, 5, 64, True),
        "HuggingFaceTB/SmolLM2-1.7B": ("llama", 49152, 2048, 8192, 24, 32, 32, 64, True),
        "mistralai/Mistral-7B-v0.1": ("mistral", 32000, 4096, 14336, 32, 32, 8, 128, False),
        "mistralai/Mistral-7B-v0.3": ("mistral", 32768, 4096, 14336, 32, 32, 8, 128, False),
        "meta-llama/Llama-3.1-8B": ("llama", 128256, 4096, 14336, 32, 32, 8, 128, False),
        "meta-llama/Llama-3.2-1B": ("llama", 128256, 2048, 8192, 16, 32, 8, 64, True),
        "meta-llama/Llama-3.2-3B": ("llama", 128256, 3072, 8192, 28, 24, 8, 128, True),
        "Qwen/Qwen2.5-0.5B": ("qwen2", 151936, 896, 4864, 24, 14, 2, 64, True),
        "Qwen/Qwen2.5-1.5B": ("qwen2", 151936, 1536, 8960, 28, 12, 2, 128, True),
        "Qwen/Qwen2.5-7B": ("qwen2", 152064, 3584, 18944, 28, 28, 4, 128, False),
        "google/gemma-2-2b": ("gemma2", 256000, 2304, 9216, 26, 8, 4, 256, True),
        "google/gemma-2-9b": ("gemma2", 256000, 3584, 14336, 42, 16, 8, 256, True),
    }
)
FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)
# Other names for the same shape: an instruction-tuned model has its base's.
ENDINGS = ("-instruct", "-it")
ALIASES = MappingProxyType(
    {
        "mistral-7b": "mistralai/Mistral-7B-v0.3",
        "mistral-7b-instruct": "mistralai/Mistral-7B-v0.3",
        "mistral-7b-instruct-v0.3": "mistralai/Mistral-7B-v0.3",
    }
)


def find_shape(model: str, home: Home) -> tuple[Shape, bool]:
    """The shape of a prepared base, a known model, a folder, a config.json or a model on the hub, in this order.

    Returns:
        The shape, and whether Polytone trains the model on this machine: a prepared base or the embedded default.

    Raises:
        InputError: `model_not_found`, or as `read_shape`.
        UnavailableError: `base_unreachable` where the hub cannot be reached.
    """
    if model in list_bases(home):
        return read_shape(base_folder(home, model) / "source", model), True
    if (known := known_name(model)) is not None:
        return shape_of(dict(zip(FIELDS, KNOWN[known], strict=True)), known), known == EMBEDDED
    path = Path(model).expanduser()
    if path.exists():
        return read_shape(path, path.parent.name if path.name == "config.json" else path.name), False
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise InputError(
            f"There is no model {model!r}: it is not a prepared base under {home.bases}, a file, a folder, or a known "
            f"name. Known: {', '.join(KNOWN)}.",
            code="model_not_found",
            param="model",
        )
    return read_shape(config_from_hub(model), model), False


def known_name(model: str) -> str | None:
    """The known model of this name in any case, with or without its organisation or `-instruct`."""
    lower = model.lower()
    spelled = {spelling: name for name in KNOWN for spelling in (name.lower(), bare(name))}
    spelled.update(ALIASES)
    spelled.update({f"mistralai/{alias}": name for alias, name in ALIASES.items()})
    spellings = (lower, *(lower.removesuffix(ending) for ending in ENDINGS))
    return next((spelled[spelling] for spelling in spellings if spelling in spelled), None)


def bare(name: str) -> str:
    """The name without its organisation, in lower case."""
    return name.lower().rpartition("/")[2]


def config_from_hub(model: str) -> Path:
    """Fetch a model's config.json, and nothing else of it."""
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(model, "config.json"))
    except Exception as error:
        raise UnavailableError(
            f"Cannot fetch config.json of {model!r} from the model hub ({type(error).__name__}). Name a folder or a "
            f"config.json, a prepared base, or a model that is known by name: {', '.join(KNOWN)}.",
            code="base_unreachable",
            param="model",
        ) from error
