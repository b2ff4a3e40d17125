"""A recipe: one YAML file that says what to train on what. Unknown keys are refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from polytone.contract.adapter import Sampling
from polytone.contract.errors import InputError
from polytone.contract.home import NAME_PATTERN
from polytone.contract.rows import describe

SFT_LEARNING_RATE = 2e-4
# KTO's authors use 5e-7 to 5e-6; above 1e-4 the voice comes apart.
KTO_LEARNING_RATE = 5e-6
KTO_LARGEST_LEARNING_RATE = 1e-4


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(Section):
    """Files of rows, relative to the recipe: conversations for sft, verdicts for kto.

    Without `held_out`, a share of `train` is held out. For kto `held_out` may be conversations too.
    """

    train: Path
    held_out: Path | None = None
    held_out_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.1


class LoraSection(Section):
    """Shape of the adapter (LoRA, Hu et al. 2021). Targets `all-linear` follows QLoRA (Dettmers et al. 2023)."""

    rank: Annotated[int, Field(ge=1, le=256)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | list[str] = "all-linear"


class TrainingSection(Section):
    """Optimization. `batch` rows make one optimizer step, `micro_batch` of them at a time in memory.

    `sft` learns from conversations; `kto` (Ethayarajh et al. 2024) from replies that were found good or bad.
    """

    method: Literal["sft", "kto"] = "sft"
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
    evaluations: Annotated[int, Field(ge=0, le=100)] = 1
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _learning_rate_of_the_method(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.get("method") == "kto":
            return {"learning_rate": KTO_LEARNING_RATE, **content}
        return content


class DriftSection(Section):
    """Held-out prompts answered after training, which serving compares traffic with; `rows: 0` turns it off."""

    rows: Annotated[int, Field(ge=0, le=1000)] = 64
    max_tokens: Annotated[int, Field(ge=1, le=1024)] = 64


class GatesSection(Section):
    """What `polytone evaluate` demands of a version before it may be promoted; null switches a gate off.

    Losses are in nats per assistant token and judged by the bound of their interval that speaks against the version;
    figures of replies are judged as they are. docs/evaluation.md says how each is measured.
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


class Recipe(Section):
    """The whole recipe; `name` is the voice it trains."""

    name: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
    base: str = "smollm2-135m-instruct"
    data: DataSection
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()
    drift: DriftSection = DriftSection()
    gates: GatesSection = GatesSection()
    system_prompt: str | None = None
    sampling: Sampling | None = None
    licence: str = "unknown"
    parent: str | None = None

    def record(self) -> dict[str, Any]:
        """The recipe as the manifest keeps it: files by name, without this machine's folders."""
        record = self.model_dump(mode="json")
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
        raise InputError(f"{path}: there is no such recipe file.", code="recipe_not_found") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}).", code="recipe_not_found") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f"{path}:{place.line + 1}" if place else str(path)
        raise InputError(
            f"{where}: is not valid YAML: {getattr(error, 'problem', None) or error}. "
            "Mend that line (indentation and colons are the usual culprits).",
            code="recipe_not_yaml",
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must be a mapping that starts with 'name:'.", code="recipe_invalid")
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        problems = [f"{path}: {explain(problem)}" for problem in error.errors()]
        raise InputError("\n".join(problems), code="recipe_invalid", param=first_field(error)) from None
    if found := list(contradictions(recipe)):
        message = "\n".join(f"{path}: {field}: {problem}" for field, problem in found)
        raise InputError(message, code="recipe_invalid", param=found[0][0])
    data = recipe.data.model_copy(
        update={
            "train": path.parent / recipe.data.train,
            "held_out": recipe.data.held_out and path.parent / recipe.data.held_out,
        }
    )
    return recipe.model_copy(update={"data": data})


def contradictions(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Fields that do not go together, each with what to do about it."""
    training = recipe.training
    if training.batch % training.micro_batch:
        yield "training.batch", f"{training.batch} is not a multiple of micro_batch {training.micro_batch}."
    if training.method != "kto":
        return
    if recipe.parent is None:
        yield "parent", "kto improves a voice that exists. Name the version to start from, such as acme@3f2a91c0de12."
    if training.micro_batch < 2:
        yield "training.micro_batch", "kto compares the rows of a batch with each other; 2 is the least."
    if training.learning_rate > KTO_LARGEST_LEARNING_RATE:
        yield (
            "training.learning_rate",
            f"{training.learning_rate:g} is too high for kto, the most is {KTO_LARGEST_LEARNING_RATE:g}. "
            f"Leave it out for {KTO_LEARNING_RATE:g}.",
        )


def explain(problem: Any) -> str:
    """One pydantic error in words; an unknown key gets the keys that exist."""
    if problem["type"] != "extra_forbidden":
        return describe(problem)
    section: Any = Recipe
    for part in problem["loc"][:-1]:
        section = section.model_fields[part].annotation
    keys = ", ".join(getattr(section, "model_fields", {}))
    return f"{'.'.join(map(str, problem['loc']))}: is not a recipe key; known here: {keys}."


def first_field(error: ValidationError) -> str:
    return ".".join(str(part) for part in error.errors()[0]["loc"])
