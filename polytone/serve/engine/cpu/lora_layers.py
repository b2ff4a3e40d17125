"""LoRA layers for vLLM on a CPU, which add adapters by a plan (`lora_plan`) instead of gathering matrices per token.

An adapter is activated by reference, not by copying, and the vocabulary is projected on once unless an adapter of the
batch has a part of its own there.
"""

import logging
from typing import Any

import numpy as np
import torch
import vllm.lora.utils as lora_utils
from torch import Tensor
from torch.nn.functional import embedding
from vllm.lora.layers import (
    ColumnParallelLinearWithLoRA,
    LogitsProcessorWithLoRA,
    MergedColumnParallelLinearWithLoRA,
    MergedQKVParallelLinearWithLoRA,
    QKVParallelLinearWithLoRA,
    ReplicatedLinearWithLoRA,
    RowParallelLinearWithLoRA,
    VocabParallelEmbeddingWithLoRA,
)
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from .lora_kernel import build
from .lora_plan import Run, plan, runs, swaps, weights

log = logging.getLogger("vllm.polytone")
META = torch.device("meta")
LINEAR = (
    ColumnParallelLinearWithLoRA,
    MergedColumnParallelLinearWithLoRA,
    QKVParallelLinearWithLoRA,
    MergedQKVParallelLinearWithLoRA,
    RowParallelLinearWithLoRA,
    ReplicatedLinearWithLoRA,
)


class Runs(PunicaWrapperCPU):  # type: ignore[misc]
    """vLLM's punica wrapper: the runs of a batch, of all its tokens and of the last token of each request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kernel = build(torch.get_num_threads())
        self.batch = 0  # its number; the plans of the layers are for one batch
        self.of_tokens: tuple[Run, ...] = ()
        self.of_requests: tuple[Run, ...] = ()

    def update_metadata(self, mapping: Any, lora_index_to_id: list[int | None], *args: Any, **kwargs: Any) -> None:
        super().update_metadata(mapping, lora_index_to_id, *args, **kwargs)  # for layers that stay vLLM's
        slots = {adapter: slot for slot, adapter in enumerate(lora_index_to_id) if adapter is not None}
        self.of_tokens = tuple(runs(mapping.index_mapping, slots))
        self.of_requests = tuple(runs(mapping.prompt_mapping, slots))
        self.batch += 1


class AdapterSlotMixin:
    """A part of every layer: adapters stay where they were loaded, and a slot holds a reference to one."""

    adapters: list[Any]

    def create_lora_weights(self: Any, max_loras: int, lora_config: Any, model_config: Any = None) -> None:
        device, self.device = self.device, META  # of its stacked tensors vLLM uses the shape and type alone
        super().create_lora_weights(max_loras, lora_config, model_config)  # type: ignore[misc]
        self.device = device
        self.adapters = [None] * max_loras
        self.planned = -1

    def reset_lora(self: Any, index: int) -> None:
        self.adapters[index] = None
        self.planned = -1


class GroupedLinear(AdapterSlotMixin):
    """A linear layer, possibly of several fused ones."""

    def set_lora(self: Any, index: int, lora_a: Any, lora_b: Any) -> None:
        if isinstance(lora_b, list) and len(lora_b) != self.n_slices:
            lora_a, lora_b = self.expand_packed_lora(lora_a, lora_b)
        if self.tp_size > 1:
            lora_a, lora_b = self.slice_lora_a(lora_a), self.slice_lora_b(lora_b)
        if not isinstance(lora_a, list):
            lora_a, lora_b = [lora_a], [lora_b]
        self.adapters[index] = weights(lora_a, lora_b, self.output_slices)
        self.planned = -1

    def _apply_lora_to_output(self: Any, x: Tensor, output: Tensor) -> Tensor:
        batch = self.punica_wrapper
        if batch.of_tokens:
            if self.planned != batch.batch:
                kernel = batch.kernel if x.dtype == output.dtype == torch.float32 else None
                self.plan, self.planned = plan(batch.of_tokens, self.adapters, kernel), batch.batch
            y = output if output.ndim == 2 else output.view(-1, output.shape[-1])
            rows = x if x.ndim == 2 else x.view(-1, x.shape[-1])
            for add in self.plan:
                add(y, rows)
        return output


class GroupedEmbedding(AdapterSlotMixin, VocabParallelEmbeddingWithLoRA):  # type: ignore[misc]
    """Token embeddings; an adapter's part is looked up for its own rows only."""

    def create_lora_weights(self, max_loras: int, lora_config: Any, model_config: Any = None) -> None:
        shape = (max_loras, self.base_layer.org_vocab_size, lora_config.max_lora_rank)
        self.lora_a_stacked = torch.empty(shape, dtype=lora_config.lora_dtype, device=META)
        self.adapters = [None] * max_loras

    def set_lora(self, index: int, lora_a: Tensor, lora_b: Tensor) -> None:
        self.adapters[index] = (lora_a.t().contiguous(), lora_b.t())

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.base_layer.forward(x)
        flat, tokens = output.view(-1, output.shape[-1]), x.view(-1)
        for run in self.punica_wrapper.of_tokens:
            adapter = self.adapters[run.slot]
            if adapter is not None:
                a, b = adapter
                flat[run.start : run.stop].addmm_(embedding(tokens[run.start : run.stop], a), b)
        return output


class GroupedLogits(AdapterSlotMixin, LogitsProcessorWithLoRA):  # type: ignore[misc]
    """The projection onto the vocabulary. Adapters without a part in it cost nothing beyond the base's work."""

    def create_lora_weights(self, max_loras: int, lora_config: Any, model_config: Any = None) -> None:
        super().create_lora_weights(max_loras, lora_config, model_config)
        if self.sharded_to_full_mapping is not None:
            self.sharded_to_full_mapping_gpu = torch.tensor(self.sharded_to_full_mapping, device=self.device)

    def set_lora(self, index: int, lora_a: Tensor, lora_b: Tensor) -> None:
        self.adapters[index] = weights([lora_a], [lora_b], [lora_b.shape[0]])

    def _get_logits(
        self, hidden_states: Tensor, lm_head: Any, embedding_bias: Tensor | None = None, skip_gather: bool = False
    ) -> Tensor | None:
        head = getattr(lm_head, "base_layer", lm_head)
        logits = self.base_layer._gather_logits(self.base_layer._apply_head(head, hidden_states, embedding_bias))
        if logits is None:
            return None
        if self.sharded_to_full_mapping_gpu is not None:
            logits = logits[:, self.sharded_to_full_mapping_gpu]
        for add in plan(self.punica_wrapper.of_requests, self.adapters, None):
            add(logits, hidden_states)
        return logits[:, : self.base_layer.vocab_size]


def install() -> None:
    """Replace vLLM's layers by these in this process. May be called again."""
    if lora_utils.LogitsProcessorWithLoRA is GroupedLogits:
        return
    grouped = {stock: type(f"Grouped{stock.__name__}", (GroupedLinear, stock), {}) for stock in LINEAR}
    grouped[VocabParallelEmbeddingWithLoRA] = GroupedEmbedding
    lora_utils._all_lora_classes = tuple(grouped.get(stock, stock) for stock in lora_utils._all_lora_classes)
    lora_utils.LogitsProcessorWithLoRA = GroupedLogits
    free_slots_when_deactivated()
    replace_failed_loads_by_empty_adapters()
    sort_batches_by_adapter()


def free_slots_when_deactivated() -> None:
    """Empty the slot of an evicted adapter. vLLM leaves it until another adapter takes it, and its reference would keep
    the weights in memory.
    """
    original = LoRAModelManager._deactivate_adapter

    def deactivate(self: Any, lora_id: int) -> None:
        slot = self.lora_index_to_id.index(lora_id) if lora_id in self.lora_index_to_id else None
        original(self, lora_id)
        if slot is not None:
            for module in self.modules.values():
                module.reset_lora(slot)

    LoRAModelManager._deactivate_adapter = deactivate


def replace_failed_loads_by_empty_adapters() -> None:
    """Requests may be sent together with the load of their adapter. If the load fails, vLLM tries it again within a
    step, and failing there ends the engine. Here an empty adapter takes its place. Nobody sees its answers, since the
    failed load ends these requests.
    """
    original = LRUCacheWorkerLoRAManager._apply_adapters

    def apply(self: Any, requests: set[Any]) -> None:
        for request in requests:
            if request.lora_int_id not in self.list_adapters():
                try:
                    self.add_adapter(request)
                except Exception:
                    log.warning("%s could not be loaded", request.lora_name, exc_info=True)
                    empty = LoRAModel(request.lora_int_id, 1, {})
                    self._adapter_manager._registered_adapters[request.lora_int_id] = empty
        original(self, requests)

    LRUCacheWorkerLoRAManager._apply_adapters = apply


def sort_batches_by_adapter() -> None:
    """Sort the requests of a batch by adapter, unless attention needs an order of its own. On a CPU it takes any."""
    original = CPUModelRunner._may_reorder_batch

    def reorder(self: Any, scheduler_output: Any) -> None:
        original(self, scheduler_output)
        batch = self.input_batch
        if self.lora_config is None or self.reorder_batch_threshold is not None:
            return
        order = np.argsort(batch.request_lora_mapping[: batch.num_reqs], kind="stable")
        for i, j in swaps(order.tolist()):
            batch.swap_states(i, j)

    CPUModelRunner._may_reorder_batch = reorder
