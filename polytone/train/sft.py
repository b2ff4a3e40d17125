"""Supervised fine-tuning: a recipe on a prepared base -> a run folder with an adapter.

TRL's SFTTrainer with PEFT on a bitsandbytes NF4 base (QLoRA, Dettmers et al. 2023), on CPU or GPU.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from polytone.contract.adapter import Data, DataSource, Evaluation, Fingerprint
from polytone.contract.base import Base, base_folder, load_base
from polytone.contract.errors import CheckError
from polytone.contract.home import Home
from polytone.contract.rows import ConversationFile, read_conversations

from .base import compute_dtype, load_nf4
from .cpu_loss import trainer_class
from .data import Row, split, tokenize
from .evaluate import evaluate
from .fingerprint import take_fingerprint
from .plot import plot_loss
from .progress import Progress
from .recipe import Recipe


@dataclass(frozen=True)
class Run:
    """What a finished training run leaves: its folder (adapter/, metrics.jsonl, loss.png) and what was measured."""

    folder: Path
    recipe: Recipe
    base: Base
    data: Data
    evaluation: Evaluation
    fingerprint: Fingerprint
    seconds: float


@dataclass(frozen=True)
class Prepared:
    """Tokenized rows and where they came from."""

    train: list[Row]
    held_out: list[Row]
    data: Data


def run_sft(home: Home, recipe: Recipe, progress: Progress) -> Run:
    """Train one adapter and measure it.

    Raises:
        InputError: anything wrong with recipe or data, before the model is loaded.
        CheckError: `nothing_trainable` or `training_diverged`.
    """
    began = time.monotonic()
    base = load_base(home, recipe.base)
    source = base_folder(home, base.id) / "source"
    tokenizer = AutoTokenizer.from_pretrained(source)
    prepared = prepare_rows(recipe, tokenizer)
    folder = home.runs / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(recipe.training.seed)
    model = attach_adapter(load_nf4(source, compute_dtype()), recipe)
    trainer = make_trainer(model, tokenizer, prepared, recipe, Recorder(folder / "metrics.jsonl", progress))
    progress.start(f"Training {recipe.name}", total=planned_steps(len(prepared.train), recipe))
    trainer.train()
    progress.finish()
    records = [record for record in trainer.state.log_history if "loss" in record or "eval_loss" in record]
    plot_loss(records, f"{recipe.name} on {base.id}", folder / "loss.png")

    # Without the flag PEFT asks the model hub whether the base's vocabulary changed.
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    evaluation = evaluate(model, prepared.held_out, progress)
    fingerprint = take_fingerprint(model, tokenizer, recipe.system_prompt, progress)
    return Run(folder, recipe, base, prepared.data, evaluation, fingerprint, time.monotonic() - began)


def prepare_rows(recipe: Recipe, tokenizer: Any) -> Prepared:
    train_file = read_conversations(recipe.data.train)
    train = tokenize(train_file, tokenizer, recipe.training.max_length, recipe.system_prompt)
    if recipe.data.held_out is None:
        held_file = train_file
        train, held_out = split(train, recipe.data.held_out_share, recipe.training.seed)
    else:
        held_file = read_conversations(recipe.data.held_out)
        held_out = tokenize(held_file, tokenizer, recipe.training.max_length, recipe.system_prompt)
    data = Data(train=describe_source(train_file, train), held_out=describe_source(held_file, held_out))
    return Prepared(train, held_out, data)


def describe_source(file: ConversationFile, rows: list[Row]) -> DataSource:
    return DataSource(
        path=Path(file.path).name,
        sha256=file.sha256,
        rows=len(rows),
        assistant_tokens=sum(row.supervised for row in rows),
    )


def attach_adapter(model: Any, recipe: Recipe) -> Any:
    model.requires_grad_(False)
    model.config.use_cache = False
    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=recipe.lora.rank,
            lora_alpha=recipe.lora.alpha,
            lora_dropout=recipe.lora.dropout,
            target_modules=recipe.lora.targets,
        ),
        autocast_adapter_dtype=True,
    )
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        raise CheckError("No parameter is trainable: lora.targets match no module.", code="nothing_trainable")
    # The manifest names the base by id and digest; a path of the training machine says nothing to anyone.
    adapted.peft_config["default"].base_model_name_or_path = recipe.base
    return adapted


def make_trainer(model: Any, tokenizer: Any, prepared: Prepared, recipe: Recipe, recorder: "Recorder") -> SFTTrainer:
    settings = recipe.training
    steps = planned_steps(len(prepared.train), recipe)
    gpu = torch.cuda.is_available()
    config = SFTConfig(
        output_dir=str(recorder.path.parent / "checkpoints"),
        num_train_epochs=settings.epochs,
        max_steps=steps,
        per_device_train_batch_size=settings.micro_batch,
        per_device_eval_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.batch // settings.micro_batch,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=round(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.gradient_clip,
        seed=settings.seed,
        data_seed=settings.seed,
        max_length=None,  # rows that are too long were refused, none is cut
        packing=False,
        gradient_checkpointing=gpu,
        bf16=gpu,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        train_sampling_strategy="group_by_length",
        eval_strategy="steps" if settings.evaluations else "no",
        eval_steps=max(1, -(-steps // max(1, settings.evaluations))),
        logging_steps=1,
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = trainer_class(model.config)(
        model=model,
        args=config,
        train_dataset=as_dataset(prepared.train),
        eval_dataset=as_dataset(prepared.held_out),
        processing_class=tokenizer,
        callbacks=[recorder],
    )
    trainer.remove_callback(PrinterCallback)
    # TRL casts the adapter of a quantized model to bfloat16. Float32 costs 2 bytes more a parameter, trains faster on a
    # CPU, and makes the saved adapter the very numbers that were measured.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def planned_steps(rows: int, recipe: Recipe) -> int:
    """Optimizer steps of the run; `max_steps` caps what the epochs ask for."""
    steps = max(1, round(recipe.training.epochs * -(-rows // recipe.training.batch)))
    return min(steps, recipe.training.max_steps or steps)


def as_dataset(rows: list[Row]) -> Dataset:
    return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]})


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Writes every log record as one JSON line, moves the progress bar, stops a run whose loss is no number."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self.path = path
        self.progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        record = {"step": state.global_step, **(logs or {})}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        loss = record.get("loss")
        if loss is None:
            return
        if not float(loss) < float("inf"):
            raise CheckError(
                f"The loss became {loss} at step {state.global_step}. Lower training.learning_rate.",
                code="training_diverged",
            )
        self.progress.advance(f"loss {float(loss):.2f}")
