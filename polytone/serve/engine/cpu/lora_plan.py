"""A plan of what adapters add to a batch: the rows of each adapter, the matrices of its parts, and how to add them.

A batch is a sequence of runs: neighbouring rows that belong to one adapter. Requests are sorted by adapter, so that
each has one run, and no rows need to be gathered or put back. Rows without an adapter cost nothing.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .lora_kernel import HEAD, MOST_ROWS, Kernel


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring rows `start` to `stop` of a batch that belong to the adapter in `slot`."""

    slot: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Slice:
    """One output of a fused module. `b` (ranks, columns) maps ranks from `first` on to columns from `left` on."""

    left: int
    first: int
    b: Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """One adapter's part of one module: `a` (ranks of all slices, inputs) and the `b` of each slice.

    All matrices are float32, or all are bfloat16. `record` describes them for the kernel, with room in front for the
    first row and the number of rows of a run.
    """

    a: Tensor
    slices: tuple[Slice, ...]
    record: NDArray[np.int64]

    def add(self, y: Tensor, x: Tensor) -> None:
        """y (rows, outputs) += x (rows, inputs) @ a.T @ b, in place."""
        h = torch.mm(x, self.a.t().to(x.dtype))
        for part in self.slices:
            ranks, columns = part.b.shape
            y[:, part.left : part.left + columns].addmm_(h[:, part.first : part.first + ranks], part.b.to(y.dtype))


def runs(adapters: Sequence[int], slots: dict[int, int]) -> Iterable[Run]:
    """The runs of a batch. `adapters` has the adapter of each row, 0 for none; `slots` the slot of each adapter."""
    start = 0
    for adapter, rows in groupby(adapters):
        stop = start + sum(1 for _ in rows)
        if adapter > 0:
            yield Run(slots[adapter], start, stop)
        start = stop


def swaps(order: list[int]) -> Iterable[tuple[int, int]]:
    """Swaps of two positions that, made one after the other, bring the item at position `order[i]` to position i."""
    order = list(order)
    for position in range(len(order)):
        while (source := order[position]) < position:  # it was swapped away: follow where it went
            order[position] = order[source]
        if source != position:
            yield position, source


def weights(lora_a: list[Tensor | None], lora_b: list[Tensor | None], outputs: Sequence[int]) -> Weights | None:
    """An adapter's part of a module, from a (ranks, inputs) and b (columns, ranks) of each slice; None if it has none.

    The matrices are copied once into the kernel's layout, and vLLM's tensors become views of the copy, so that they are
    not held twice. They are kept in bfloat16 where that holds the same numbers.
    """
    slices_of = zip(lora_a, lora_b, lefts(outputs), strict=True)
    present = [(a, b, left) for a, b, left in slices_of if a is not None and b is not None]
    if not present:
        return None
    existing = getattr(present[0][0], "polytone_weights", None)
    if existing is not None:
        return cast(Weights, existing)
    fused = present[0][0].contiguous() if len(present) == 1 else torch.cat([a for a, _, _ in present])
    exact = all(fits_bfloat16(matrix) for matrix in (fused, *(b for _, b, _ in present)))
    dtype = torch.bfloat16 if exact else fused.dtype
    fused = fused.to(dtype)
    slices, first = [], 0
    for a, b, left in present:
        columns_inside = b.to(dtype).t().contiguous()
        slices.append(Slice(left, first, columns_inside))
        b.data, a.data = columns_inside.t(), fused[first : first + a.shape[0]]
        first += a.shape[0]
    result = Weights(fused, tuple(slices), described(fused, slices))
    present[0][0].polytone_weights = result
    return result


def fits_bfloat16(matrix: Tensor) -> bool:
    """Whether bfloat16, the upper half of a float32, holds these numbers exactly."""
    if matrix.dtype == torch.bfloat16:
        return True
    return matrix.dtype == torch.float32 and not bool((matrix.contiguous().view(torch.int32) & 0xFFFF).any())


def described(a: Tensor, slices: Sequence[Slice]) -> NDArray[np.int64]:
    of_slices = [(part.left, part.b.shape[1], part.first, part.b.shape[0], part.b.data_ptr()) for part in slices]
    run = [0, 0, a.data_ptr(), a.shape[1], a.shape[0], len(slices), a.dtype == torch.bfloat16]
    return np.array([*run, *chain(*of_slices)], dtype=np.int64)


def lefts(outputs: Sequence[int]) -> list[int]:
    return [sum(outputs[:number]) for number in range(len(outputs))]


Adding = Callable[[Tensor, Tensor], None]


def plan(of: tuple[Run, ...], adapters: list[Weights | None], kernel: Kernel | None) -> tuple[Adding, ...]:
    """The steps that add a batch's adapters to a module's output: short runs by the kernel, long ones by GEMMs."""
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
    """Add all `parts` in one call. It runs in every module of every step, so it only sets the addresses of x and y. The
    plan is made anew in every module whenever a request comes or goes.
    """
    records = [part.record for _, part in parts]
    ends = np.cumsum([len(record) for record in records])
    starts = np.concatenate([[0], ends[:-1]]) + HEAD
    plan = np.concatenate([np.zeros(HEAD, dtype=np.int64), *records])
    plan[starts] = [run.start for run, _ in parts]
    plan[starts + 1] = [run.stop - run.start for run, _ in parts]
    ranks = max(part.a.shape[0] for _, part in parts)
    scratch = np.empty((max(run.stop for run, _ in parts), ranks), dtype=np.float32)
    address = plan.ctypes.data
    plan[0], plan[1], plan[6], plan[7] = address + HEAD * 8, len(parts), scratch.ctypes.data, ranks
    arguments = (ctypes.c_int64 * HEAD).from_buffer(plan)

    def add(y: Tensor, x: Tensor, _kept: object = (scratch, parts, plan)) -> None:  # the plan points into their memory
        arguments[2] = x.data_ptr()
        arguments[3] = x.stride(0)
        arguments[4] = y.data_ptr()
        arguments[5] = y.stride(0)
        kernel(address)

    return add
