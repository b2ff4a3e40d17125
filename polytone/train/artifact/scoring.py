"""Loss per assistant token on held-out conversations, with and without the adapter, on the same NF4 base."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from polytone.contract.manifest import Evaluation
from polytone.progress import Progress
from polytone.train.tokenization import IGNORED, Row

BATCH = 8
# Nats per token that count as a change; rounding alone gives a hundredth of it.
LEAST_CHANGE = 1e-4


@dataclass(frozen=True)
class Score:
    """One row: the negative log-likelihood of its supervised tokens, how many of them are the likeliest, and all."""

    nats: float
    correct: int
    tokens: int


def batch_count(rows: list[Row]) -> int:
    return -(-len(rows) // BATCH)


def evaluate(model: Any, rows: list[Row], progress: Progress) -> Evaluation:
    """Compare a PEFT model with its own base on `rows`."""
    progress.start("Evaluating on held-out conversations", total=2 * batch_count(rows))
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
    """Loss on `rows` of the parent's adapter, before it is trained further."""
    progress.start("Evaluating the parent on held-out conversations", total=batch_count(rows))
    loss = float(loss_per_token(model, rows, progress, "parent"))
    progress.finish()
    return round(loss, 6)


def loss_per_token(model: Any, rows: list[Row], progress: Progress, note: str) -> float:
    """Mean negative log-likelihood in nats over all supervised tokens of all rows (not a mean of row means)."""
    scores: list[Score] = score_rows(model, rows, progress, note)
    return sum(score.nats for score in scores) / sum(score.tokens for score in scores)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def score_rows(model: Any, rows: list[Row], progress: Progress, note: str) -> list[Score]:
    """How well the model predicts the supervised tokens of each row, in the rows' order."""
    model.eval()
    scores: dict[int, Score] = {}
    # Rows of similar length share a batch, so that little is computed on padding.
    ordered = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        ids, mask, labels = pad_batch([rows[index] for index in batch], model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        targets = labels[:, 1:]
        scores.update(zip(batch, score_batch(logits, targets), strict=True))
        progress.advance(note)
    return [scores[index] for index in range(len(rows))]


def score_batch(logits: torch.Tensor, targets: torch.Tensor) -> Iterator[Score]:
    """A score for each row of `logits` (batch, length, vocabulary) and `targets` (batch, length)."""
    for row, labels in zip(logits, targets, strict=True):
        supervised = labels != IGNORED
        predicted, expected = row[supervised].float(), labels[supervised]
        nats = cross_entropy(predicted, expected, reduction="sum").item()
        yield Score(nats, int((predicted.argmax(-1) == expected).sum()), int(supervised.sum()))


def pad_batch(rows: list[Row], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-pad to (batch, longest): token ids, attention mask, labels."""
    ids, labels = [torch.tensor(row.input_ids) for row in rows], [torch.tensor(row.labels) for row in rows]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    padded = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    return pad_sequence(ids, batch_first=True).to(device), mask.to(device), padded.to(device)
