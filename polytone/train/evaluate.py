"""Loss per assistant token on held-out conversations, with and without the adapter, on the same NF4 base."""

from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from polytone.contract.adapter import MANIFEST, Evaluation, Manifest, check_servable, read_version
from polytone.contract.base import base_folder, load_base
from polytone.contract.home import Home
from polytone.contract.rows import Conversation, RowFile

from .base import compute_dtype, load_nf4
from .data import IGNORED, Row, tokenize
from .progress import Progress

BATCH = 8


def evaluate(model: Any, rows: list[Row], progress: Progress) -> Evaluation:
    """Compare a PEFT model with its own base on `rows`."""
    progress.start("Evaluating on held-out conversations", total=2 * -(-len(rows) // BATCH))
    adapter_loss = loss_per_token(model, rows, progress, "voice")
    with model.disable_adapter():
        base_loss = loss_per_token(model, rows, progress, "base")
    progress.finish()
    return Evaluation(
        base_loss=round(base_loss, 6),
        adapter_loss=round(adapter_loss, 6),
        tokens=sum(row.supervised for row in rows),
    )


def evaluate_parent(model: Any, rows: list[Row], progress: Progress) -> float:
    """Loss on `rows` of the adapter that is about to be continued."""
    progress.start("Evaluating the parent on held-out conversations", total=-(-len(rows) // BATCH))
    loss = float(loss_per_token(model, rows, progress, "parent"))
    progress.finish()
    return round(loss, 6)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def loss_per_token(model: Any, rows: list[Row], progress: Progress, note: str) -> float:
    """Mean negative log-likelihood in nats over all supervised tokens of all rows (not a mean of row means)."""
    model.eval()
    total, tokens = 0.0, 0
    # Rows of like length share a batch, so that little is computed on padding.
    ordered = sorted(rows, key=lambda row: len(row.input_ids))
    for start in range(0, len(ordered), BATCH):
        ids, mask, labels = pad_batch(ordered[start : start + BATCH], model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        targets = labels[:, 1:]
        wanted = targets != IGNORED
        total += cross_entropy(logits[wanted].float(), targets[wanted], reduction="sum").item()
        tokens += int(wanted.sum())
        progress.advance(note)
    return total / tokens


def pad_batch(rows: list[Row], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-pad to (batch, longest): token ids, attention mask, labels."""
    longest = max(len(row.input_ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        ids[index, :length] = torch.tensor(row.input_ids)
        mask[index, :length] = 1
        labels[index, :length] = torch.tensor(row.labels)
    return ids.to(device), mask.to(device), labels.to(device)


def evaluate_version(
    home: Home, manifest: Manifest, file: RowFile[Conversation], max_length: int, progress: Progress
) -> Evaluation:
    """Load a version on the NF4 base it was trained on and evaluate it on the rows of a file.

    Its parent is evaluated too where it is on disk.
    """
    base = load_base(home, manifest.base.id)
    check_servable(manifest, base, manifest.peft.rank)
    source = base_folder(home, base.id) / "source"
    rows = tokenize(file, AutoTokenizer.from_pretrained(source), max_length, manifest.system_prompt).single
    model = PeftModel.from_pretrained(load_nf4(source, compute_dtype()), home.adapter_folder(manifest.version))
    result = evaluate(model, rows, progress)
    parent = parent_on_disk(home, manifest)
    if parent is None:
        return result
    check_servable(parent, base, parent.peft.rank)
    model.load_adapter(home.adapter_folder(parent.version), adapter_name="parent")
    model.set_adapter("parent")
    return result.model_copy(update={"parent_loss": evaluate_parent(model, rows, progress)})


def parent_on_disk(home: Home, manifest: Manifest) -> Manifest | None:
    if manifest.parent is None or not (home.adapter_folder(manifest.parent) / MANIFEST).is_file():
        return None
    return read_version(home, manifest.parent)
