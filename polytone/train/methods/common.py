"""The common part of all training methods: prepared rows, trainer arguments, the adapter in float32."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from polytone.contract.errors import InputError
from polytone.contract.export import ExportReference, read_export_manifest
from polytone.contract.manifest import Data, DataSource
from polytone.contract.rows import Conversation
from polytone.train.dataset.training_rows import RowFile, read_conversations
from polytone.train.recipe import Recipe
from polytone.train.runs.checkpoints import CHECKPOINTS
from polytone.train.runs.distributed import world_size
from polytone.train.tokenization import Fitted, Row, tokenize


@dataclass(frozen=True)
class Prepared:
    """Tokenized rows and their origin.

    `train` and `watched` have the columns of the method's trainer; the loss on `watched` (None for none) is measured
    during training. `learned` are the rows of `train` (of a pair the preferred reply). The voice is measured on
    `held_out`, which are `references` as tokens; prompts for the drift reference come from `conversations`.
    """

    train: Dataset
    watched: Dataset | None
    learned: list[Row]
    held_out: list[Row]
    references: list[Conversation]
    conversations: list[Conversation]
    data: Data


@dataclass(frozen=True)
class RunCallbacks:
    """The folder of a run and the callbacks for its steps."""

    folder: Path
    callbacks: list[TrainerCallback]


def fitted_conversations(
    path: Path, recipe: Recipe, tokenizer: Any
) -> tuple[RowFile[Conversation], Fitted[Conversation]]:
    """A file of conversations, read and tokenized.

    Raises:
        InputError: as `read_conversations` and `tokenize`.
    """
    file = read_conversations(path)
    length = recipe.training.max_length
    return file, tokenize(file, tokenizer, length, recipe.system_prompt, recipe.data.too_long)


def measured_on_conversations(
    train: Dataset,
    watched: Dataset | None,
    learned: tuple[RowFile[Any], Fitted[Any]],
    held_out: tuple[RowFile[Conversation], Fitted[Conversation]],
) -> Prepared:
    """Rows of any kind to learn from, and held-out conversations."""
    return Prepared(
        train=train,
        watched=watched,
        learned=learned[1].single,
        held_out=held_out[1].single,
        references=held_out[1].sources,
        conversations=held_out[1].sources,
        data=describe_data(*learned, *held_out),
    )


def describe_data(train: RowFile[Any], rows: Fitted[Any], held_out: RowFile[Any], held_rows: Fitted[Any]) -> Data:
    """What the manifest records of the training rows and the held-out rows.

    Raises:
        InputError: `wrong_split` for training rows that were exported to be held out; else as
            `read_export_manifest`.
    """
    described = Data(train=describe_source(train, rows), held_out=describe_source(held_out, held_rows))
    manifest = read_export_manifest(Path(train.path))
    if manifest is not None and manifest.split != "train":
        raise InputError(
            f"{train.path}: data.train: these rows were exported to be held out; a voice trained on them cannot be "
            "judged by them. Name the file of the split train.",
            code="wrong_split",
            param="data.train",
        )
    return described


def describe_source(file: RowFile[Any], rows: Fitted[Any]) -> DataSource:
    """What the manifest records of a file of rows, with its origin where it was exported from traffic."""
    path = Path(file.path)
    export = read_export_manifest(path)
    return DataSource(
        path=path.name,
        sha256=file.sha256,
        rows=len(rows.rows),
        assistant_tokens=sum(row.supervised for row in rows.single),
        cut=rows.cut,
        dropped=rows.dropped,
        export=export
        and ExportReference(
            sha256=export.sha256, format=export.format, adapter=export.adapter, completions=export.completions
        ),
    )


def shared_arguments(prepared: Prepared, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Arguments for every trainer; the trainer itself cuts and reports nothing."""
    settings = recipe.training
    steps = planned_steps(len(prepared.train), recipe)
    at_once = settings.micro_batch * world_size()
    if settings.batch % at_once:
        raise InputError(
            f"training.batch: {settings.batch} rows cannot be shared by {world_size()} processes of micro_batch "
            f"{settings.micro_batch}; make it a multiple of {at_once}.",
            code="recipe_invalid",
            param="training.batch",
        )
    gpu = torch.cuda.is_available()
    watched = settings.evaluations if prepared.watched is not None else 0
    return {
        "output_dir": str(folder / CHECKPOINTS),
        "num_train_epochs": settings.epochs,
        "max_steps": steps,
        "per_device_train_batch_size": settings.micro_batch,
        "per_device_eval_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": settings.batch // at_once,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": round(settings.warmup * steps),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.gradient_clip,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "max_length": None,  # `tokenization` has dealt with rows that are too long
        "gradient_checkpointing": gpu,
        "bf16": gpu,
        "use_cpu": not gpu,
        "dataloader_pin_memory": gpu,
        "eval_strategy": "steps" if watched else "no",
        "eval_steps": max(1, -(-steps // max(1, watched))),
        "logging_steps": 1,
        "logging_first_step": True,
        "save_strategy": "steps" if settings.checkpoints else "no",
        "save_steps": max(1, -(-steps // max(1, settings.checkpoints))),
        "save_total_limit": 2,
        "report_to": "none",
        "ddp_find_unused_parameters": False,
        "disable_tqdm": True,
    }


def planned_steps(rows: int, recipe: Recipe) -> int:
    """Optimizer steps of the run: those of its epochs, at most `max_steps`."""
    steps = max(1, round(recipe.training.epochs * -(-rows // recipe.training.batch)))
    return min(steps, recipe.training.max_steps or steps)


def build_trainer(
    kind: Callable[..., Any], model: Any, config: Any, tokenizer: Any, prepared: Prepared, run: RunCallbacks
) -> Any:
    """A TRL trainer that leaves the adapter in float32.

    TRL casts the adapter of a quantized model to bfloat16. Float32 costs 2 more bytes per parameter, trains faster on a
    CPU, starts from a parent's exact weights, and saves exactly the weights that were measured.
    """
    float32 = {
        name: weight.detach().float().clone() for name, weight in model.named_parameters() if weight.requires_grad
    }
    trainer = kind(
        model=model,
        args=config,
        train_dataset=prepared.train,
        eval_dataset=prepared.watched,
        processing_class=tokenizer,
        callbacks=run.callbacks,
    )
    for name, weight in model.named_parameters():
        if name in float32:
            weight.data = float32[name]
    trainer.remove_callback(PrinterCallback)
    return trainer
