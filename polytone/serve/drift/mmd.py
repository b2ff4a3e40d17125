"""Are the last conversations about something else? Permutation tests of windows of embeddings, with a stated mean run
length until a chance alarm. One observation per conversation, as in `detectors`.
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
    """The p-value of "`window` (n, d) and `reference` (m, d) come from one distribution".

    The squared maximum mean discrepancy with a Gaussian kernel, as wide as the reference's median distance, against
    `permutations` random relabelings (Gretton et al. 2012, "A kernel two-sample test"). Once `enough` of these reach
    the observed value, as they soon do where nothing changed, the rest is left out, and the p-value is `enough` over
    those drawn (Besag and Clifford 1991, "Sequential Monte Carlo p-values"). P(p <= a) <= a either way; the smallest
    p-value is 1 / (permutations + 1).

    The sequence of `seed` decides the relabelings. The time is that of (n + m)² · permutations multiplications at most.
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
    """The median of the squared distances within `reference` (m, d), or 1 where there are none."""
    apart = squared_distances(reference, reference)[np.triu_indices(len(reference), 1)]
    return float(np.median(apart)) or 1.0 if apart.size else 1.0


def squared_distances(a: Floats, b: Floats) -> Floats:
    """(n, m) of (n, d) and (m, d); 0 where it is nothing but rounding."""
    a, b = np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32)
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)
    apart = squares - 2 * (a @ b.T)
    return np.where(apart < ROUNDING * squares, 0, apart)


def gaussian(points: Floats, width: float) -> Floats:
    """Kernel (N, N) of points (N, d)."""
    return np.asarray(np.exp(-squared_distances(points, points) / width))


def centred(kernel: Floats) -> Floats:
    """With rows and columns that sum to 0: then the discrepancy is, up to a factor, the sum inside the window."""
    kernel = kernel - kernel.mean(axis=0)
    return np.asarray(kernel - kernel.mean(axis=1, keepdims=True))


def inside(kernel: Floats, labels: NDArray[np.bool_]) -> Floats:
    """The sums (B,) of a kernel (N, N) over the pairs that labels (B, N) name."""
    chosen = labels.astype(np.float32)
    return np.asarray(((chosen @ kernel) * chosen).sum(axis=1))


def relabelings(chance: np.random.Generator, times: int, chosen: int, of: int) -> NDArray[np.bool_]:
    """(times, of), of which `chosen` in each row are true, all choices equally likely."""
    order = chance.random((times, of))
    return np.asarray(order < np.partition(order, chosen, axis=1)[:, chosen : chosen + 1])


def nearest_to_change(window: Floats, reference: Floats, k: int) -> list[int]:
    """The numbers of the `k` of `window` (n, d) that lie most where it is denser than `reference` (m, d), the most
    telling first: where the witness function of the discrepancy is largest."""
    width = bandwidth(reference)
    near = np.exp(-squared_distances(window, window) / width).mean(axis=1)
    usual = np.exp(-squared_distances(window, reference) / width).mean(axis=1)
    return [int(number) for number in np.argsort(usual - near, kind="stable")[:k]]


def level(run_length: float) -> float:
    """Of each test, so that the mean run length of `MmdWindowTest` is at least `run_length`.

    With SCALES tests at each block's end, the first j blocks raise an alarm with probability SCALES · level · j at
    most, so that the first alarm comes after 1 / (2 · SCALES · level) blocks on average, or later.
    """
    return BLOCK / (2 * SCALES * run_length)


def permutations(run_length: float) -> int:
    """Enough for a p-value at half the level."""
    return math.ceil(2 / level(run_length))


def window_p_values(recent: Floats, reference: Floats, run_length: float, seed: int) -> dict[int, float]:
    """Window size -> p-value of the last so many of `recent` (r, d) at a block's end."""
    draws = permutations(run_length)
    sizes = [size for size in (BLOCK, LONG) if len(recent) >= size]
    return {size: mmd_p_value(recent[-size:], reference, draws, (seed, size)) for size in sizes}


@dataclass(frozen=True)
class MmdWindowTest:
    """Watches for conversations' vectors to be distributed otherwise than the reference's.

    Every 50 conversations, these and the last 200 are each compared with the reference. While new vectors and
    reference come from one distribution, the first alarm comes after `run_length` conversations on average or later,
    over all references that might have been drawn.

    `recent` are the vectors since, float16 (200 at most, `dimension`). `p_value` is the smaller one of the last
    block's end. `since` is set by the first alarm and stays: the first conversation, counted from 1, of the window
    that raised it.
    """

    dimension: int
    run_length: float = RUN_LENGTH
    recent: bytes = b""
    seen: int = 0
    p_value: float = 1.0
    since: int | None = None

    def step(self, vector: ArrayLike, reference: Floats) -> Self:
        """The state after one more conversation; `vector` (d,), reference (m, d). At a block's end it takes as long
        as two tests, else next to nothing.

        Raises:
            ValueError: `vector` has another shape, or numbers that float16 cannot hold.
        """
        with np.errstate(over="ignore"):
            new = np.asarray(vector).astype(np.float16)
        if new.shape != (self.dimension,) or not np.isfinite(new).all():
            raise ValueError(f"a vector is {self.dimension} finite numbers")
        recent = (self.recent + new.tobytes())[-LONG * self.dimension * new.itemsize :]
        after = replace(self, recent=recent, seen=self.seen + 1)
        return after if after.seen % BLOCK else after._tested(reference)

    def _tested(self, reference: Floats) -> Self:
        found = window_p_values(self.vectors, reference, self.run_length, self.seen)
        alarming = [size for size, p in found.items() if p <= level(self.run_length)]
        since = self.seen - min(alarming) + 1 if alarming and self.since is None else self.since
        return replace(self, p_value=min(found.values()), since=since)

    @property
    def vectors(self) -> NDArray[np.float16]:
        """(200 at most, d), the newest last."""
        return np.frombuffer(self.recent, dtype=np.float16).reshape(-1, self.dimension)

    @property
    def alarmed(self) -> bool:
        return self.since is not None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "recent": base64.b64encode(self.recent).decode("ascii")}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        return cls(**{**found, "recent": base64.b64decode(found["recent"])})
