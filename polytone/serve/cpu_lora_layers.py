"""vLLM's LoRA layers for a CPU: one kernel call for all adapters of a module, on the weights as they were loaded.

A batch is a sequence of runs: neighbouring rows that belong to one adapter. Requests are sorted by adapter, so that
each has one run, and no rows need to be gathered or put back. Rows without an adapter cost nothing, an adapter is
activated by reference, not by copying, and the vocabulary is projected on once unless an adapter of the batch has a
part of its own there.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any, cast

import numpy as np
import torch
import vllm.lora.utils as lora_utils
from torch import Tensor
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
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from .cpu_lora_kernel import HEAD, MOST_ROWS, Kernel, build

META = torch.device("meta")


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring rows `start` to `stop` of a batch that belong to the adapter in `slot`."""

    slot: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Slice:
    """One output of a fused module: columns from `left` on, of the ranks from `first` on, by `b` (ranks, columns)."""

    left: int
    first: int
    b: Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """One adapter's part of one module: `a` (ranks of all slices, inputs) and what each slice makes of its ranks."""

    a: Tensor
    slices: tuple[Slice, ...]

    def add(self, y: Tensor, x: Tensor) -> None:
        """y (rows, outputs) += x (rows, inputs) @ a.T @ b, in place."""
        h = torch.mm(x, self.a.t())
        for part in self.slices:
            ranks, columns = part.b.shape
            y[:, part.left : part.left + columns].addmm_(h[:, part.first : part.first + ranks], part.b)

    def described(self) -> list[int]:
        """As the kernel wants it, behind a run's first row and its rows."""
        slices = [(part.left, part.b.shape[1], part.first, part.b.shape[0], part.b.data_ptr()) for part in self.slices]
        return [self.a.data_ptr(), self.a.shape[1], self.a.shape[0], len(slices), *chain(*slices)]


Adding = Callable[[Tensor, Tensor], None]


def plan(of: tuple[Run, ...], adapters: list[Weights | None], kernel: Kernel | None) -> tuple[Adding, ...]:
    """What is to be added to a module's output for the batch as it is: short runs by the kernel, long ones by GEMMs."""
    steps, short = list[Adding](), list[tuple[Run, Weights]]()
    for run in of:
        part = adapters[run.slot]
        if part is None:
            continue
        if kernel is not None and run.stop - run.start <= MOST_ROWS:
            short.append((run, part))
        else:
            steps.append(by_gemm(run, part))
    if kernel is not None and short:
        steps.append(by_kernel(kernel, short))
    return tuple(steps)


def by_gemm(run: Run, part: Weights) -> Adding:
    def add(y: Tensor, x: Tensor) -> None:
        part.add(y[run.start : run.stop], x[run.start : run.stop])

    return add


def by_kernel(kernel: Kernel, parts: list[tuple[Run, Weights]]) -> Adding:
    """All of `parts` in one call. Only the addresses of x and y change from step to step; this runs in every module of
    every step, so it does little else."""
    ranks = max(part.a.shape[0] for _, part in parts)
    scratch = np.empty((max(run.stop for run, _ in parts), ranks), dtype=np.float32)
    runs = list(chain(*((run.start, run.stop - run.start, *part.described()) for run, part in parts)))
    arguments = (ctypes.c_int64 * (HEAD + len(runs)))(*[0] * HEAD, *runs)
    address = ctypes.addressof(arguments)
    arguments[0], arguments[1] = address + HEAD * 8, len(parts)
    arguments[6], arguments[7] = scratch.ctypes.data, ranks

    def add(y: Tensor, x: Tensor, _kept: object = (scratch, parts)) -> None:  # the arguments point into their memory
        arguments[2] = x.data_ptr()
        arguments[3] = x.stride(0)
        arguments[4] = y.data_ptr()
        arguments[5] = y.stride(0)
        kernel(address)

    return add


class Runs(PunicaWrapperCPU):  # type: ignore[misc]
    """What vLLM calls a punica wrapper: knows whose rows a batch has, of its tokens and of its requests' last ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kernel = build(torch.get_num_threads())
        self.batch = 0  # changes with the runs
        self.of_tokens: tuple[Run, ...] = ()
        self.of_requests: tuple[Run, ...] = ()

    def update_metadata(self, mapping: Any, lora_index_to_id: list[int | None], *args: Any, **kwargs: Any) -> None:
        super().update_metadata(mapping, lora_index_to_id, *args, **kwargs)  # for layers that stay vLLM's
        slots = {adapter: slot for slot, adapter in enumerate(lora_index_to_id) if adapter is not None}
        self.of_tokens = tuple(runs(mapping.index_mapping, slots))
        self.of_requests = tuple(runs(mapping.prompt_mapping, slots))
        self.batch += 1


def runs(adapters: Sequence[int], slots: dict[int, int]) -> Iterable[Run]:
    """The runs of a batch whose rows belong to `adapters`, where 0 is none."""
    start = 0
    for adapter, rows in groupby(adapters):
        stop = start + sum(1 for _ in rows)
        if adapter > 0:
            yield Run(slots[adapter], start, stop)
        start = stop


class GroupedLinear:
    """Mixed into vLLM's linear layers. Adapters stay where they were loaded; a slot holds a reference."""

    def create_lora_weights(self: Any, max_loras: int, lora_config: Any, model_config: Any = None) -> None:
        device, self.device = self.device, META  # vLLM asks its stacked tensors for shape and type only
        super().create_lora_weights(max_loras, lora_config, model_config)  # type: ignore[misc]
        self.device = device
        self.adapters = [None] * max_loras
        self.planned = -1

    def reset_lora(self: Any, index: int) -> None:
        self.adapters[index] = None
        self.planned = -1

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
        now = self.punica_wrapper
        if now.of_tokens:
            if self.planned != now.batch:
                kernel = now.kernel if x.dtype == output.dtype == torch.float32 else None
                self.plan, self.planned = plan(now.of_tokens, self.adapters, kernel), now.batch
            y = output if output.ndim == 2 else output.view(-1, output.shape[-1])
            rows = x if x.ndim == 2 else x.view(-1, x.shape[-1])
            for add in self.plan:
                add(y, rows)
        return output


def weights(lora_a: list[Tensor | None], lora_b: list[Tensor | None], outputs: Sequence[int]) -> Weights | None:
    """A module's part of an adapter, from a (ranks, inputs) and b (columns, ranks) of its slices; None where there is
    none.

    The matrices are laid out anew, once, and vLLM's own tensors become views of that: they are never held twice.
    """
    slices_of = zip(lora_a, lora_b, lefts(outputs), strict=True)
    there = [(a, b, left) for a, b, left in slices_of if a is not None and b is not None]
    if not there:
        return None
    known = getattr(there[0][0], "polytone_weights", None)
    if known is not None:
        return cast(Weights, known)
    fused = there[0][0].contiguous() if len(there) == 1 else torch.cat([a for a, _, _ in there])
    slices, first = [], 0
    for a, b, left in there:
        columns_inside = b.t().contiguous()
        slices.append(Slice(left, first, columns_inside))
        b.data, a.data = columns_inside.t(), fused[first : first + a.shape[0]]
        first += a.shape[0]
    made = Weights(fused, tuple(slices))
    there[0][0].polytone_weights = made
    return made


def lefts(outputs: Sequence[int]) -> list[int]:
    return [sum(outputs[:number]) for number in range(len(outputs))]


def add_runs(of: tuple[Run, ...], adapters: list[Weights | None], y: Tensor, x: Tensor) -> None:
    for run in of:
        adapter = adapters[run.slot]
        if adapter is not None:
            adapter.add(y[run.start : run.stop], x[run.start : run.stop])


class GroupedColumnParallel(GroupedLinear, ColumnParallelLinearWithLoRA):  # type: ignore[misc]
    pass


class GroupedMergedColumnParallel(GroupedLinear, MergedColumnParallelLinearWithLoRA):  # type: ignore[misc]
    pass


class GroupedQKVParallel(GroupedLinear, QKVParallelLinearWithLoRA):  # type: ignore[misc]
    pass


class GroupedMergedQKVParallel(GroupedLinear, MergedQKVParallelLinearWithLoRA):  # type: ignore[misc]
    pass


class GroupedRowParallel(GroupedLinear, RowParallelLinearWithLoRA):  # type: ignore[misc]
    pass


class GroupedReplicated(GroupedLinear, ReplicatedLinearWithLoRA):  # type: ignore[misc]
    pass


class GroupedEmbedding(VocabParallelEmbeddingWithLoRA):  # type: ignore[misc]
    """Token embeddings; an adapter's part is looked up for its own rows only."""

    def create_lora_weights(self, max_loras: int, lora_config: Any, model_config: Any = None) -> None:
        shape = (max_loras, self.base_layer.org_vocab_size, lora_config.max_lora_rank)
        self.lora_a_stacked = torch.empty(shape, dtype=lora_config.lora_dtype, device=META)
        self.adapters: list[tuple[Tensor, Tensor] | None] = [None] * max_loras

    def reset_lora(self, index: int) -> None:
        self.adapters[index] = None

    def set_lora(self, index: int, lora_a: Tensor, lora_b: Tensor) -> None:
        self.adapters[index] = (lora_a.t().contiguous(), lora_b.t())

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.base_layer.forward(x)
        flat, tokens = output.view(-1, output.shape[-1]), x.view(-1)
        for run in self.punica_wrapper.of_tokens:
            adapter = self.adapters[run.slot]
            if adapter is not None:
                a, b = adapter
                flat[run.start : run.stop].addmm_(torch.nn.functional.embedding(tokens[run.start : run.stop], a), b)
        return output


class GroupedLogits(LogitsProcessorWithLoRA):  # type: ignore[misc]
    """The projection onto the vocabulary; no work beyond the base's for adapters without a part in it."""

    def create_lora_weights(self, max_loras: int, lora_config: Any, model_config: Any = None) -> None:
        device: torch.device = getattr(self, "device")  # noqa: B009 - vLLM's class has no types
        self.device = META
        super().create_lora_weights(max_loras, lora_config, model_config)
        self.device = device
        if self.sharded_to_full_mapping is not None:
            self.sharded_to_full_mapping_gpu = torch.tensor(self.sharded_to_full_mapping, device=device)
        self.adapters: list[Weights | None] = [None] * max_loras

    def reset_lora(self, index: int) -> None:
        self.adapters[index] = None

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
        add_runs(self.punica_wrapper.of_requests, self.adapters, logits, hidden_states)
        return logits[:, : self.base_layer.vocab_size]


GROUPED = {
    ColumnParallelLinearWithLoRA: GroupedColumnParallel,
    MergedColumnParallelLinearWithLoRA: GroupedMergedColumnParallel,
    QKVParallelLinearWithLoRA: GroupedQKVParallel,
    MergedQKVParallelLinearWithLoRA: GroupedMergedQKVParallel,
    RowParallelLinearWithLoRA: GroupedRowParallel,
    ReplicatedLinearWithLoRA: GroupedReplicated,
    VocabParallelEmbeddingWithLoRA: GroupedEmbedding,
}


def install() -> None:
    """Put these layers in the place of vLLM's, in this process. Once is enough; again changes nothing."""
    if lora_utils.LogitsProcessorWithLoRA is GroupedLogits:
        return
    lora_utils._all_lora_classes = tuple(GROUPED.get(cls, cls) for cls in lora_utils._all_lora_classes)
    lora_utils.LogitsProcessorWithLoRA = GroupedLogits
    free_slots_when_deactivated()
    sort_batches_by_adapter()


def free_slots_when_deactivated() -> None:
    """vLLM leaves an adapter's weights in its slot until another takes it; a reference would keep them alive."""
    original = LoRAModelManager._deactivate_adapter

    def deactivate(self: Any, lora_id: int) -> None:
        slot = self.lora_index_to_id.index(lora_id) if lora_id in self.lora_index_to_id else None
        original(self, lora_id)
        if slot is not None:
            for module in self.modules.values():
                module.reset_lora(slot)

    LoRAModelManager._deactivate_adapter = deactivate


def sort_batches_by_adapter() -> None:
    """Let requests of one adapter stand together. CPU attention takes any order; where one is asked for, it stays."""
    original = CPUModelRunner._may_reorder_batch

    def reorder(self: Any, scheduler_output: Any) -> None:
        original(self, scheduler_output)
        batch = self.input_batch
        if self.lora_config is None or self.reorder_batch_threshold is not None:
            return
        order = np.argsort(batch.request_lora_mapping[: batch.num_reqs], kind="stable")
        for one, other in swaps(order.tolist()):
            batch.swap_states(one, other)

    CPUModelRunner._may_reorder_batch = reorder


def swaps(order: list[int]) -> Iterable[tuple[int, int]]:
    """Swaps of positions that, one after the other, bring what stands at `order[i]` to position i."""
    order = list(order)
    for position in range(len(order)):
        while (source := order[position]) < position:  # it was swapped away: follow where it went
            order[position] = order[source]
        if source != position:
            yield position, source
