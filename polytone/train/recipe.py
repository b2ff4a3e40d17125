"""A recipe: one YAML file that says what to train on what. Unknown keys are refused."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polytone.contract.adapter import Sampling
from polytone.contract.errors import InputError
from polytone.contract.home import NAME_PATTERN
from polytone.contract.rows import describe


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(Section):
    """Files of conversations, relative to the recipe. Without `held_out`, a share of `train` is held out."""

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
    """Optimization. `batch` conversations make one optimizer step, `micro_batch` of them at a time in memory."""

    epochs: Annotated[float, Field(gt=0)] = 2.0
    max_steps: Annotated[int, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] = 8
    micro_batch: Annotated[int, Field(ge=1)] = 8
    learning_rate: Annotated[float, Field(gt=0, le=0.1)] = 2e-4
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    max_length: Annotated[int, Field(ge=16)] = 1024
    evaluations: Annotated[int, Field(ge=0, le=100)] = 1
    seed: int = 0


class Recipe(Section):
    """The whole recipe; `name` is the voice it trains."""

    name: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
    base: str = "smollm2-135m-instruct"
    data: DataSection
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()
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
    if recipe.training.batch % recipe.training.micro_batch:
        raise InputError(
            f"{path}: training.batch: {recipe.training.batch} is not a multiple of micro_batch "
            f"{recipe.training.micro_batch}.",
            code="recipe_invalid",
            param="training.batch",
        )
    data = recipe.data.model_copy(
        update={
            "train": path.parent / recipe.data.train,
            "held_out": recipe.data.held_out and path.parent / recipe.data.held_out,
        }
    )
    return recipe.model_copy(update={"data": data})


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
