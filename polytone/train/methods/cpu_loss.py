"""The training loss on a CPU: logits of the supervised positions only.

TRL computes the logits of every position where Triton is missing. With a vocabulary of 49,152 and a third of the tokens
supervised, that is 44 % of a training step of the small default model (docs/performance.md).
"""

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from trl import SFTTrainer

from polytone.train.memory.shape import LOGIT_CHANGES
from polytone.train.runs.checkpoints import ExactCheckpoints
from polytone.train.tokenization import IGNORED


def trainer_class(config: Any) -> type[Any]:
    """TRL's own loss, or the one below where there is no GPU and the logits are the head's bare product."""
    plain = all(getattr(config.get_text_config(), name, None) is None for name in LOGIT_CHANGES)
    return EveryPositionTrainer if torch.cuda.is_available() or not plain else SupervisedPositionsTrainer


class EveryPositionTrainer(ExactCheckpoints, SFTTrainer):  # type: ignore[misc]
    """TRL's own loss."""


class SupervisedPositionsTrainer(ExactCheckpoints, SFTTrainer):  # type: ignore[misc]
    """Projects only the supervised positions onto the vocabulary; the same loss and gradients as TRL's `nll`."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs["labels"][:, 1:]
        supervised = labels != IGNORED
        body = self.accelerator.unwrap_model(model).get_base_model()
        # Through `model`, so that a distributed wrapper sees the forward pass; the head on one position costs nothing.
        hidden = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs.get("attention_mask"),
            position_ids=inputs.get("position_ids"),
            use_cache=False,
            logits_to_keep=1,
            output_hidden_states=True,
        ).hidden_states[-1]
        logits = body.get_output_embeddings()(hidden[:, :-1][supervised]).float()
        targets = labels[supervised]
        count = supervised.sum() if num_items_in_batch is None else num_items_in_batch
        loss = cross_entropy(logits, targets, reduction="sum") / count
        if num_items_in_batch is not None:
            # The count is over all processes, whose gradients are averaged.
            loss = loss * self.accelerator.num_processes
        mode = "train" if model.training else "eval"
        self._metrics[mode]["mean_token_accuracy"].append(float((logits.argmax(-1) == targets).float().mean()))
        return (loss, {"logits": logits}) if return_outputs else loss
