"""A recipe with everything it names read and found good, before a model is loaded."""

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
from .runs.preflight import Checks, check_extras, check_memory, check_template, describe


@dataclass(frozen=True)
class Method:
    """A way to train: how rows are prepared, who trains on them, and what its loss is called."""

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
    """What is to be trained; `prepared` are its rows as tokens."""

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
    """What is proven before the compute is spent.

    Args:
        force: only tell where the estimate says that memory will not do.

    Raises:
        CheckError: `template_differs`, `memory_too_small`.
    """
    prepared, prompt = job.prepared, job.recipe.system_prompt
    memory = check_memory(job.recipe, job.source.parent, prepared.learned, prepared.held_out, force)
    rendered = check_template(job.base, job.source.parent, job.tokenizer, prepared.conversations, prompt)
    train = prepared.data.train
    return describe(prepared.learned, prepared.held_out, train.cut, train.dropped, rendered, job.steps, memory)
