"""A job: a recipe with everything it names read and checked, before a model is loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import AutoTokenizer

from polytone.contract.base import Base, base_folder, load_base
from polytone.contract.home import Home
from polytone.contract.manifest import Manifest

from .artifact.lora import inherit, read_parent
from .methods.common import Prepared, RunCallbacks, planned_steps
from .methods.dpo import dpo_trainer, prepare_preferences
from .methods.kto import kto_trainer, prepare_verdicts
from .methods.sft import prepare_conversations, sft_trainer
from .recipe import Recipe, require_data
from .runs.preflight import Checks, check_extras, check_memory, check_template, describe, warnings_of


@dataclass(frozen=True)
class Method:
    """A way to train: how rows are prepared, the trainer, and the unit of its loss."""

    prepare: Callable[[Recipe, Any], Prepared]
    trainer: Callable[[Any, Any, Prepared, Recipe, RunCallbacks], Any]
    loss: str


METHODS = MappingProxyType(
    {
        "sft": Method(prepare_conversations, sft_trainer, "loss per assistant token (nats)"),
        "kto": Method(prepare_verdicts, kto_trainer, "KTO loss"),
        "dpo": Method(prepare_preferences, dpo_trainer, "DPO loss"),
    }
)


@dataclass(frozen=True)
class Job:
    """Everything that a run needs; `prepared` are its rows as tokens."""

    recipe: Recipe
    base: Base
    source: Path
    parent: Manifest | None
    parent_folder: Path | None
    tokenizer: Any
    prepared: Prepared

    @property
    def method(self) -> Method:
        return METHODS[self.recipe.training.method]

    @property
    def steps(self) -> int:
        return planned_steps(len(self.prepared.train), self.recipe)


def read_job(home: Home, recipe: Recipe) -> Job:
    """Read everything that the recipe names.

    Raises:
        InputError, NotFoundError, CheckError: anything wrong with base, parent or data.
    """
    require_data(recipe)
    base = load_base(home, recipe.base)
    parent = read_parent(home, recipe, base)
    recipe = inherit(recipe, parent)
    source = base_folder(home, base.id) / "source"
    tokenizer = AutoTokenizer.from_pretrained(source)
    check_extras(recipe)
    prepared = METHODS[recipe.training.method].prepare(recipe, tokenizer)
    parent_folder = home.adapter_folder(parent.version) if parent else None
    return Job(recipe, base, source, parent, parent_folder, tokenizer, prepared)


def check(job: Job, force: bool = False) -> Checks:
    """Check everything that can be checked before the compute is spent.

    Args:
        force: accept an estimate of more memory than is available.

    Raises:
        CheckError: `template_differs`, `memory_too_small`.
    """
    prepared, prompt = job.prepared, job.recipe.system_prompt
    memory = check_memory(job.recipe, job.source.parent, prepared.learned, prepared.held_out, force)
    rendered = check_template(job.base, job.source.parent, job.tokenizer, prepared.conversations, prompt)
    train = prepared.data.train
    warnings = list(warnings_of(job.recipe, prepared.held_out, prepared.conversations))
    return describe(
        prepared.learned, prepared.held_out, train.cut, train.dropped, rendered, job.steps, memory, warnings
    )
