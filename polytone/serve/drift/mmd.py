"""Permutation tests of windows of embeddings, with a stated mean run length: are recent topics those of the reference?

One observation per conversation, as in `sequential`.
"""

import base64
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .sequential import RUN_LENGTH, Floats

Seed: TypeAlias = int | tuple[int, ...]

BLOCK, LONG = 50, 200
SCALES = 2
CHUNK = 128
ENOUGH = 10
SLACK = 1e-5
ROUNDING = 1e-6


def mmd_p_value(window: Floats, reference: Floats, permutations: int, seed: Seed, enough: int = ENOUGH) -> float:
    """The p-value of the hypothesis that `window` (n, d) and `reference` (m, d) come from one distribution.

    The squared maximum mean discrepancy, with a Gaussian kernel as wide as the median distance in the reference, is
    compared with `permutations` random relabelings (Gretton et al. 2012, "A kernel two-sample test"). As soon as
    `enough` of these reach the observed value, which happens early if nothing changed, the test stops, and the p-value
    is `enough` divided by the number drawn (Besag and Clifford 1991, "Sequential Monte Carlo p-values"). In both cases
    P(p <= a) <= a; the smallest p-value is 1 / (permutations + 1).

    `seed` determines the relabelings. The cost is at most (n + m)² · permutations multiplications.
    """
    kernel = centred(gaussian(np.concatenate([window, reference]), bandwidth(reference)))
    observed = inside(kernel, (np.arange(len(kernel)) < len(window))[None])[0]
    observed -= SLACK * abs(observed) + SLACK  # equal values may differ by rounding
    chance = np.random.default_rng(seed)
    reached = 0
    for drawn in range(0, permutations, CHUNK):
        labels = relabelings(chance, min(CHUNK, permutations - drawn), len(window), len(kernel))
        so_far = reached + np.cumsum(inside(kernel, labels) >= observed)
        if so_far[-1] >= enough:
            return enough / (drawn + 1 + int((so_far >= enough).argmax()))
        reached = int(so_far[-1])
    return (1 + reached) / (1 + permutations)


def bandwidth(reference: Floats) -> float:
    """The median of the squared distances within `reference` (m, d), or 1 if there are none."""
    apart = squared_distances(reference, reference)[np.triu_indices(len(reference), 1)]
    return float(np.median(apart)) or 1.0 if apart.size else 1.0


def squared_distances(a: Floats, b: Floats) -> Floats:
    """Squared distances (n, m) between (n, d) and (m, d); 0 where only rounding errors remain."""
    a, b = np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32)
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)
    apart = squares - 2 * (a @ b.T)
    return np.where(apart < ROUNDING * squares, 0, apart)


def gaussian(points: Floats, width: float) -> Floats:
    """Kernel (N, N) of points (N, d)."""
    return np.asarray(np.exp(-squared_distances(points, points) / width))


def centred(kernel: Floats) -> Floats:
    """The kernel with rows and columns that sum to 0: then sums inside a window are proportional to the discrepancy."""
    kernel = kernel - kernel.mean(axis=0)
    return np.asarray(kernel - kernel.mean(axis=1, keepdims=True))


def inside(kernel: Floats, labels: NDArray[np.bool_]) -> Floats:
    """Sums (B,) of a kernel (N, N) over the pairs selected by labels (B, N)."""
    chosen = labels.astype(np.float32)
    return np.asarray(((chosen @ kernel) * chosen).sum(axis=1))


def relabelings(chance: np.random.Generator, times: int, chosen: int, of: int) -> NDArray[np.bool_]:
    """Random rows (times, of) with exactly `chosen` true values each, all choices equally likely."""
    order = chance.random((times, of))
    return np.asarray(order < np.partition(order, chosen, axis=1)[:, chosen : chosen + 1])


def nearest_to_change(window: Floats, reference: Floats, k: int) -> list[int]:
    """Indices of the `k` points of `window` (n, d) that show its difference from `reference` (m, d) best.

    These are where the window is denser than the reference: where the witness function of the discrepancy is largest.
    """
    width = bandwidth(reference)
    near = np.exp(-squared_distances(window, window) / width).mean(axis=1)
    usual = np.exp(-squared_distances(window, reference) / width).mean(axis=1)
    return [int(number) for number in np.argsort(usual - near, kind="stable")[:k]]


def level(run_length: float) -> float:
    """The level of each test that makes the mean run length of `MmdWindowTest` at least `run_length`.

    With SCALES tests at the end of each block, the first j blocks raise an alarm with probability SCALES · level · j
    or less, so the first alarm comes after 1 / (2 · SCALES · level) blocks on average, or later.
    """
    return BLOCK / (2 * SCALES * run_length)


def permutations(run_length: float) -> int:
    """The number of permutations that allows a p-value of half the level."""
    return math.ceil(2 / level(run_length))


def window_p_values(recent: Floats, reference: Floats, run_length: float, seed: int) -> dict[int, float]:
    """p-values by window size, of the last rows of `recent` (r, d) at the end of a block."""
    draws = permutations(run_length)
    sizes = [size for size in (BLOCK, LONG) if len(recent) >= size]
    return {size: mmd_p_value(recent[-size:], reference, draws, (seed, size)) for size in sizes}


@dataclass(frozen=True)
class MmdWindowTest:
    """A test for a change in the distribution of conversations' vectors, compared with a reference.

    Every 50 conversations, the last 50 and the last 200 are each compared with the reference. As long as new vectors
    and reference come from one distribution, the first alarm comes after `run_length` conversations on average or
    later, averaged over all possible references.

    `recent` holds the last vectors as float16 (at most 200, `dimension`). `p_value` is the smaller one at the end of
    the last block. `since` is set by the first alarm and stays: the first conversation, counted from 1, of the window
    that raised it.
    """

    dimension: int
    run_length: float = RUN_LENGTH
    recent: bytes = b""
    seen: int = 0
    p_value: float = 1.0
    since: int | None = None

    def step(self, vector: ArrayLike, reference: Floats) -> Self:
        """The state after one more conversation; `vector` (d,), reference (m, d). Runs two tests at a block's end.

        Raises:
            ValueError: `vector` has the wrong shape, or values that float16 cannot hold.
        """
        with np.errstate(over="ignore"):
            new = np.asarray(vector).astype(np.float16)
        if new.shape != (self.dimension,) or not np.isfinite(new).all():
            raise ValueError(f"a vector has {self.dimension} finite numbers")
        recent = (self.recent + new.tobytes())[-LONG * self.dimension * new.itemsize :]
        after = replace(self, recent=recent, seen=self.seen + 1)
        return after if after.seen % BLOCK else after._tested(reference)

    def _tested(self, reference: Floats) -> Self:
        p_values = window_p_values(self.vectors, reference, self.run_length, self.seen)
        alarming = [size for size, p in p_values.items() if p <= level(self.run_length)]
        since = self.seen - min(alarming) + 1 if alarming and self.since is None else self.since
        return replace(self, p_value=min(p_values.values()), since=since)

    @property
    def vectors(self) -> NDArray[np.float16]:
        """The recent vectors (at most 200, d), the newest last."""
        return np.frombuffer(self.recent, dtype=np.float16).reshape(-1, self.dimension)

    @property
    def alarmed(self) -> bool:
        return self.since is not None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "recent": base64.b64encode(self.recent).decode("ascii")}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        return cls(**{**state, "recent": base64.b64decode(state["recent"])})
