"""Recipes: the YAML file that says what to train on what. Unknown keys are refused."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, model_validator

from polytone.contract.errors import InputError
from polytone.contract.manifest import Sampling
from polytone.contract.models import FrozenModel, describe_problem
from polytone.contract.names import NAME_PATTERN

SFT_LEARNING_RATE = 2e-4
# The authors of KTO use 5e-7 to 5e-6, those of DPO 5e-7 to 1e-6 for whole models; above 1e-4 the voice comes apart.
PREFERENCE_LEARNING_RATE = 5e-6
PREFERENCE_LARGEST_LEARNING_RATE = 1e-4
PREFERENCE_METHODS = ("kto", "dpo")


class DataSection(FrozenModel):
    """Files of rows, relative to the recipe: conversations for sft, verdicts for kto, preferences for dpo.

    Without `held_out`, a share of `train` is held out. For kto and dpo `held_out` may be conversations too. `too_long`
    is what happens to rows longer than `training.max_length`.
    """

    train: Path
    held_out: Path | None = None
    held_out_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    too_long: Literal["refuse", "drop", "cut"] = "refuse"


class LoraSection(FrozenModel):
    """Shape of the adapter (LoRA, Hu et al. 2021). Targets `all-linear` follows QLoRA (Dettmers et al. 2023).

    `rslora` scales by alpha / sqrt(rank) in place of alpha / rank (Kalajdzievski 2023).
    """

    rank: Annotated[int, Field(ge=1, le=256)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32
    rslora: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | list[str] = "all-linear"


class TrainingSection(FrozenModel):
    """Optimization. `batch` rows make one optimizer step, `micro_batch` of them at a time in memory.

    `sft` learns from conversations; `kto` (Ethayarajh et al. 2024) from replies judged good or bad; `dpo` (Rafailov et
    al. 2023) from pairs of replies of which one was preferred. `packing` joins the rows of a micro-batch end to end
    instead of padding them. Of several `evaluations` the best adapter is kept; `patience` of them without a lower
    held-out loss end the run. `checkpoints` is how many times the run saves what it needs to be resumed.
    """

    method: Literal["sft", "kto", "dpo"] = "sft"
    epochs: Annotated[float, Field(gt=0)] = 2.0
    max_steps: Annotated[int, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] = 8
    micro_batch: Annotated[int, Field(ge=1)] = 8
    learning_rate: Annotated[float, Field(gt=0, le=0.1)] = SFT_LEARNING_RATE
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    max_length: Annotated[int, Field(ge=16)] = 1024
    packing: bool = False
    evaluations: Annotated[int, Field(ge=0, le=100)] = 1
    patience: Annotated[int, Field(ge=1)] | None = None
    checkpoints: Annotated[int, Field(ge=0, le=100)] = 5
    tensorboard: bool = False
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _learning_rate_of_the_method(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.get("method") in PREFERENCE_METHODS:
            return {"learning_rate": PREFERENCE_LEARNING_RATE, **content}
        return content


class DriftSection(FrozenModel):
    """Replies to held-out prompts, generated after training, as the reference for drift; `rows: 0` turns it off."""

    rows: Annotated[int, Field(ge=0, le=1000)] = 64
    max_tokens: Annotated[int, Field(ge=1, le=1024)] = 64


class Span(FrozenModel):
    """Numbers from `low` to `high`, integers where both are; `log` draws them evenly on a logarithmic scale."""

    low: float | int
    high: float | int
    log: bool = False
    step: Annotated[float | int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _order(self) -> "Span":
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0 and no step")
        return self


class SweepSection(FrozenModel):
    """What `polytone sweep` tries: `trials` recipes (all combinations for `grid`), each with other values of `over`.

    `over` maps a dotted recipe key to a list of values or to a span. The recipe itself is the first trial.
    """

    method: Literal["tpe", "random", "grid"] = "tpe"
    trials: Annotated[int, Field(ge=1, le=10_000)] = 8
    prune: bool = True
    seed: int = 0
    over: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)] | Span], Field(min_length=1)]


class GatesSection(FrozenModel):
    """What `polytone evaluate` requires of a version before it may be promoted; null turns a gate off.

    Losses are in nats per assistant token and judged by the unfavourable bound of their interval; figures of replies
    are judged by their value. docs/evaluation.md defines each figure.
    """

    min_improvement: Annotated[float, Field(ge=0)] | None = 0.05
    max_parent_loss_increase: Annotated[float, Field(ge=0)] | None = 0.1
    min_chrf_gain: Annotated[float, Field(ge=-100, le=100)] | None = 0.0
    min_tone: Annotated[float, Field(ge=0, le=1)] | None = 0.5
    min_on_topic: Annotated[float, Field(ge=0, le=1)] | None = 0.6
    max_repetition: Annotated[float, Field(ge=0, le=1)] | None = 0.3
    max_cut_off: Annotated[float, Field(ge=0, le=1)] | None = 0.5
    max_empty: Annotated[float, Field(ge=0, le=1)] | None = 0.05
    max_bias_gap: Annotated[float, Field(ge=0)] | None = 0.25


class Recipe(FrozenModel):
    """The whole recipe; `name` is the voice it trains."""

    name: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
    base: str = "smollm2-135m-instruct"
    data: DataSection
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()
    drift: DriftSection = DriftSection()
    sweep: SweepSection | None = None
    gates: GatesSection = GatesSection()
    system_prompt: str | None = None
    sampling: Sampling | None = None
    licence: str = "unknown"
    parent: str | None = None

    def record(self) -> dict[str, Any]:
        """The recipe as the manifest keeps it: files by name, without this machine's folders."""
        record = self.model_dump(mode="json", exclude={"sweep"})
        for key in ("train", "held_out"):
            if record["data"][key]:
                record["data"][key] = Path(record["data"][key]).name
        return record


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe; data paths in it are resolved against its folder.

    Raises:
        InputError: `recipe_not_found`, `recipe_not_yaml` or `recipe_invalid`, naming every bad field.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such recipe in {path.absolute().parent}.{similar_file(path)}", code="recipe_not_found"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}).", code="recipe_not_found") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f"{path}:{place.line + 1}" if place else str(path)
        raise InputError(
            f"{where}: is not valid YAML: {getattr(error, 'problem', None) or error}. "
            "Check the indentation and the colons of that line.",
            code="recipe_not_yaml",
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must be a mapping that starts with 'name:'.", code="recipe_invalid")
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        problems = [f"{path}: {explain(problem)}" for problem in error.errors()]
        raise InputError("\n".join(problems), code="recipe_invalid", param=first_field(error)) from None
    if conflicts := list(contradictions(recipe)):
        message = "\n".join(f"{path}: {field}: {problem}" for field, problem in conflicts)
        raise InputError(message, code="recipe_invalid", param=conflicts[0][0])
    held_out = recipe.data.held_out and path.parent / recipe.data.held_out
    data = recipe.data.model_copy(update={"train": path.parent / recipe.data.train, "held_out": held_out})
    return recipe.model_copy(update={"data": data})


def require_data(recipe: Recipe) -> None:
    """Refuse a recipe whose data files are missing.

    Raises:
        InputError: `file_not_found`.
    """
    for key in ("train", "held_out"):
        path: Path | None = getattr(recipe.data, key)
        if path is not None and not path.exists():
            raise InputError(
                f"data.{key}: there is no {path.name} in {path.absolute().parent}; paths are relative to the recipe."
                f"{similar_file(path)}",
                code="file_not_found",
                param=f"data.{key}",
            )


def similar_file(path: Path) -> str:
    """A question that names the file in the same folder with the most similar name, if there is one."""
    folder = path.absolute().parent
    names = [other.name for other in folder.iterdir() if other.is_file()] if folder.is_dir() else []
    similar = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {similar[0]}?" if similar else ""


def contradictions(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Fields that do not go together, each with the remedy."""
    training = recipe.training
    if training.batch % training.micro_batch:
        yield "training.batch", f"{training.batch} is not a multiple of micro_batch {training.micro_batch}."
    if training.patience is not None and training.patience >= training.evaluations:
        yield (
            "training.patience",
            f"needs more than {training.patience} evaluations, and there are {training.evaluations}; raise "
            "training.evaluations.",
        )
    if training.method == "sft":
        return
    if recipe.parent is None:
        yield (
            "parent",
            f"{training.method} improves an existing voice. Name the version to start from, such as acme@3f2a91c0de12.",
        )
    if training.packing:
        yield "training.packing", f"is for sft; {training.method} pads its rows."
    if training.method == "kto" and training.micro_batch < 2:
        yield "training.micro_batch", "must be at least 2: kto compares the rows of a batch with each other."
    if training.learning_rate > PREFERENCE_LARGEST_LEARNING_RATE:
        yield (
            "training.learning_rate",
            f"{training.learning_rate:g} is too high for {training.method}, which takes at most "
            f"{PREFERENCE_LARGEST_LEARNING_RATE:g}. Leave it out for {PREFERENCE_LEARNING_RATE:g}.",
        )


def explain(problem: Any) -> str:
    """One pydantic error in words; an unknown key gets the keys that exist, and the one that was probably meant."""
    path = [str(part) for part in problem["loc"]]
    if path == ["name"] and problem["type"] == "string_pattern_mismatch":
        return (
            f"name: {problem['input']!r} cannot name a voice: use up to 63 lower-case letters, digits, '.', '_' or "
            "'-', starting with a letter or digit."
        )
    if problem["type"] != "extra_forbidden":
        return describe_problem(problem)
    section = ".".join(path[:-1])
    known = [key for key in recipe_keys(Recipe) if key.rpartition(".")[0] == section]
    meant = similar_key(path[-1], section)
    names = ", ".join(key.rpartition(".")[2] for key in known)
    return f"{'.'.join(path)}: is not a recipe key;{f' did you mean {meant}?' if meant else ''} known here: {names}."


def similar_key(name: str, section: str) -> str | None:
    """The dotted key probably meant by `name` in `section`: misspelled, by its initials, or in another section."""
    keys = list(recipe_keys(Recipe))
    here = {key.rpartition(".")[2]: key for key in keys if key.rpartition(".")[0] == section}
    close = difflib.get_close_matches(name, here, n=1)
    initials = [leaf for leaf in here if "_" in leaf and "".join(word[0] for word in leaf.split("_")) == name]
    elsewhere = [key for key in keys if key.rpartition(".")[2] == name]
    return next(iter([*(here[leaf] for leaf in [*close, *initials]), *elsewhere]), None)


def recipe_keys(model: type[FrozenModel], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a section and of the sections in it, each section's own name first."""
    for name, field in model.model_fields.items():
        yield prefix + name
        sections = [kind for kind in (field.annotation, *get_args(field.annotation)) if is_section(kind)]
        for section in sections:
            yield from recipe_keys(section, f"{prefix}{name}.")


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, FrozenModel)


def first_field(error: ValidationError) -> str:
    return ".".join(str(part) for part in error.errors()[0]["loc"])
