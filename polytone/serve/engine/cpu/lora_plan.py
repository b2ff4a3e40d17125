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
    """One output of a fused module: columns from `left` on, of the ranks from `first` on, by `b` (ranks, columns)."""

    left: int
    first: int
    b: Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """One adapter's part of one module: `a` (ranks of all slices, inputs) and what each slice makes of its ranks.

    All float32, or all bfloat16. `record` says the same as the kernel wants it, with room for a run's first row and its
    rows in front.
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
    """The runs of a batch whose rows belong to `adapters`, where 0 is none."""
    start = 0
    for adapter, rows in groupby(adapters):
        stop = start + sum(1 for _ in rows)
        if adapter > 0:
            yield Run(slots[adapter], start, stop)
        start = stop


def swaps(order: list[int]) -> Iterable[tuple[int, int]]:
    """Swaps of positions that, one after the other, bring what stands at `order[i]` to position i."""
    order = list(order)
    for position in range(len(order)):
        while (source := order[position]) < position:  # it was swapped away: follow where it went
            order[position] = order[source]
        if source != position:
            yield position, source


def weights(lora_a: list[Tensor | None], lora_b: list[Tensor | None], outputs: Sequence[int]) -> Weights | None:
    """A module's part of an adapter, from a (ranks, inputs) and b (columns, ranks) of its slices; None where there is
    none.

    The matrices are laid out anew, once, and vLLM's own tensors become views of that: they are never held twice.
    Where bfloat16 holds the same numbers, it is what they are kept in.
    """
    slices_of = zip(lora_a, lora_b, lefts(outputs), strict=True)
    there = [(a, b, left) for a, b, left in slices_of if a is not None and b is not None]
    if not there:
        return None
    known = getattr(there[0][0], "polytone_weights", None)
    if known is not None:
        return cast(Weights, known)
    fused = there[0][0].contiguous() if len(there) == 1 else torch.cat([a for a, _, _ in there])
    kept = (
        torch.bfloat16 if all(fits_bfloat16(matrix) for matrix in (fused, *(b for _, b, _ in there))) else fused.dtype
    )
    fused = fused.to(kept)
    slices, first = [], 0
    for a, b, left in there:
        columns_inside = b.to(kept).t().contiguous()
        slices.append(Slice(left, first, columns_inside))
        b.data, a.data = columns_inside.t(), fused[first : first + a.shape[0]]
        first += a.shape[0]
    made = Weights(fused, tuple(slices), described(fused, slices))
    there[0][0].polytone_weights = made
    return made


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
    every step, so it does little else. It is made anew in every module whenever a request comes or goes."""
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
