"""Detectors of drift: each compares one signal of one version with its reference."""

import base64
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

import numpy as np

from .embedding import DIMENSION
from .mmd import LONG, MmdWindowTest, nearest_to_change
from .sequential import SequentialTest, upper_bound, upper_rate_bound

TWO_SIDED = frozenset({"prompt_length", "reply_length"})
TONE, LANGUAGE = "tone", "language"
NEEDS_REFERENCE = frozenset({TONE, LANGUAGE})  # live traffic alone cannot say how a voice should sound
THUMBS_DOWN = "thumbs_down"
PROMPTS, REPLIES = "prompt_topics", "reply_topics"
WARM_UP = 200  # conversations that become the reference of a version without one
WARM_UP_OF = {THUMBS_DOWN: 100}
ENOUGH = 30  # with fewer conversations a detector does not say "ok"
RECENT = 100
MARK_EVERY = 25
MARKS = 200
EXAMPLES = 5


class DriftStatus(StrEnum):
    """State of a detector. Its position in this list is the published value of `polytone_drift_state`."""

    NO_REFERENCE = "no_reference"
    WARMING_UP = "warming_up"
    INSUFFICIENT_TRAFFIC = "insufficient_traffic"
    OK = "ok"
    DRIFT = "drift"


SILENT = (DriftStatus.NO_REFERENCE, DriftStatus.WARMING_UP)  # in these states no observation can raise an alarm


@dataclass
class ObservationLog:
    """The conversations a detector observed: their count, the times of some, and the completion ids of the last."""

    count: int = 0
    marks: list[tuple[int, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def add(self, completion: str, at: str, keep: int) -> None:
        if self.count % MARK_EVERY == 0:
            self.marks = [*self.marks, (self.count + 1, at)][-MARKS:]
        self.count += 1
        self.ids = [*self.ids, completion][-keep:]

    def when(self, number: int) -> str | None:
        """Roughly when conversation `number` took place, counted from 1."""
        earlier = [at for count, at in self.marks if count <= number]
        return earlier[-1] if earlier else None


@dataclass
class ScalarDetector:
    """Detects a change of a number in [0, 1]. Without a reference, the first conversations become one."""

    signal: str
    run_length: float
    seen: ObservationLog
    reference_rows: int = 0
    reference_mean: float = 0.0
    sample: list[float] = field(default_factory=list)
    above: SequentialTest | None = None
    below: SequentialTest | None = None
    recent: list[float] = field(default_factory=list)

    @classmethod
    def fresh(cls, signal: str, run_length: float, reference: Any = None) -> Self:
        detector = cls(signal, run_length, ObservationLog())
        if reference is not None and len(reference):
            detector._freeze(np.asarray(reference, dtype=np.float64))
        return detector

    def observe(self, value: float, completion: str, at: str) -> None:
        if self.above is None:
            self.sample.append(value)
            if len(self.sample) >= WARM_UP_OF.get(self.signal, WARM_UP):
                self._freeze(np.array(self.sample))
                self.sample = []
            return
        self.seen.add(completion, at, RECENT)
        self.recent = [*self.recent, value][-RECENT:]
        self.above = self.above.step(value)
        self.below = self.below.step(1 - value) if self.below else None

    def restart(self) -> None:
        """Forget all observations; the reference stays."""
        self.seen, self.recent = ObservationLog(), []
        self.above = SequentialTest.fresh(self.above.mean, self.above.run_length) if self.above else None
        self.below = SequentialTest.fresh(self.below.mean, self.below.run_length) if self.below else None

    @property
    def since(self) -> int | None:
        """Number of the conversation with which the change probably began; None without an alarm."""
        return (self.above.since if self.above else None) or (self.below.since if self.below else None)

    @property
    def rose(self) -> bool:
        return self.above is not None and self.above.alarmed

    @property
    def statistic(self) -> float:
        """The larger test statistic as a share of the run length: an alarm at 1."""
        return max((one.statistic / one.run_length for one in (self.above, self.below) if one), default=0.0)

    def status(self) -> DriftStatus:
        if self.above is None and self.signal in NEEDS_REFERENCE and not self.sample:
            return DriftStatus.NO_REFERENCE
        if self.above is None:
            return DriftStatus.WARMING_UP
        if self.since is not None:
            return DriftStatus.DRIFT
        return DriftStatus.OK if self.seen.count >= ENOUGH else DriftStatus.INSUFFICIENT_TRAFFIC

    def examples(self) -> list[str]:
        """Completion ids of the conversations since the change whose values are most extreme in its direction."""
        count = min(len(self.recent), self.seen.count - (self.since or 1) + 1)
        order = np.argsort(np.array(self.recent[-count:]), kind="stable")
        ids = self.seen.ids[-count:]
        return [ids[i] for i in (order[::-1] if self.rose else order)[:EXAMPLES]]

    def _freeze(self, reference: Any) -> None:
        self.reference_rows, self.reference_mean = len(reference), float(reference.mean())
        sides = 2 if self.signal in TWO_SIDED else 1  # two tests at twice the run length have the stated one together
        self.above = SequentialTest.fresh(bound(reference), sides * self.run_length)
        if sides == 2:
            self.below = SequentialTest.fresh(bound(1 - reference), sides * self.run_length)

    def to_json(self) -> dict[str, Any]:
        detectors = {side: one.to_json() if one else None for side, one in self._sides().items()}
        return {**asdict(replace(self, above=None, below=None)), **detectors}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        sides = {side: SequentialTest.from_json(state[side]) if state[side] else None for side in ("above", "below")}
        return cls(**{**state, **sides, "seen": log_from_json(state["seen"])})

    def _sides(self) -> dict[str, SequentialTest | None]:
        return {"above": self.above, "below": self.below}


@dataclass
class VectorDetector:
    """Detects a change of embeddings, compared with those of the version's own first conversations.

    `reference` holds these as float16 bytes while it fills up. Held-out prompts would not do as a reference: their mix
    of topics is seldom that of the traffic, and a test that notices other topics would notice that, too.
    """

    signal: str
    run_length: float
    seen: ObservationLog
    windows: MmdWindowTest
    reference: bytes = b""

    @classmethod
    def fresh(cls, signal: str, run_length: float) -> Self:
        return cls(signal, run_length, ObservationLog(), MmdWindowTest(DIMENSION, run_length))

    def observe(self, vector: Any, completion: str, at: str) -> None:
        if self.reference_rows < WARM_UP:
            self.reference += vector.astype(np.float16).tobytes()
            return
        self.seen.add(completion, at, LONG)
        self.windows = self.windows.step(vector, self._reference)

    def restart(self) -> None:
        """Forget all observations; the reference stays."""
        self.seen, self.windows = ObservationLog(), MmdWindowTest(DIMENSION, self.run_length)

    @property
    def since(self) -> int | None:
        return self.windows.since

    @property
    def statistic(self) -> float:
        """The p-value of the last test."""
        return self.windows.p_value

    @property
    def reference_rows(self) -> int:
        return len(self._reference)

    def status(self) -> DriftStatus:
        if self.reference_rows < WARM_UP:
            return DriftStatus.WARMING_UP
        if self.since is not None:
            return DriftStatus.DRIFT
        return DriftStatus.OK if self.seen.count >= ENOUGH else DriftStatus.INSUFFICIENT_TRAFFIC

    def examples(self) -> list[str]:
        """Completion ids of the conversations in regions where recent ones are denser than the reference."""
        return [self.seen.ids[i] for i in nearest_to_change(self.windows.vectors, self._reference, EXAMPLES)]

    @property
    def _reference(self) -> Any:
        return np.frombuffer(self.reference, dtype=np.float16).reshape(-1, DIMENSION)

    def to_json(self) -> dict[str, Any]:
        return {
            "signal": self.signal,
            "run_length": self.run_length,
            "seen": asdict(self.seen),
            "windows": self.windows.to_json(),
            "reference": base64.b64encode(self.reference).decode("ascii"),
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        parts = {
            "windows": MmdWindowTest.from_json(state["windows"]),
            "reference": base64.b64decode(state["reference"]),
        }
        return cls(**{**state, **parts, "seen": log_from_json(state["seen"])})


Detector = ScalarDetector | VectorDetector


def bound(reference: Any) -> float:
    """The upper confidence bound of the reference's mean: exact for a rate, general for other values in [0, 1]."""
    if np.isin(reference, (0.0, 1.0)).all():
        return upper_rate_bound(int(reference.sum()), len(reference))
    return min(upper_bound(reference), 1.0)


def log_from_json(state: dict[str, Any]) -> ObservationLog:
    return ObservationLog(state["count"], [(number, at) for number, at in state["marks"]], state["ids"])


def detector_from_json(state: dict[str, Any]) -> Detector | None:
    """Read a stored state; None if another version of Polytone wrote it in another form, so that it starts again."""
    try:
        detector = VectorDetector.from_json(state) if "windows" in state else ScalarDetector.from_json(state)
    except (KeyError, TypeError, ValueError):
        return None
    return None if isinstance(detector, VectorDetector) and detector.windows.dimension != DIMENSION else detector
