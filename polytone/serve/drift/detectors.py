"""A detector for one signal of one version: what it compares with, what it has seen, and how it stands."""

import base64
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

import numpy as np

from .embedding import DIMENSION
from .mmd import LONG, MmdWindowTest, nearest_to_change
from .sequential import SequentialTest, upper_bound, upper_rate_bound

TWO_SIDED = frozenset({"prompt_length", "reply_length"})
THUMBS_DOWN = "thumbs_down"
PROMPTS, REPLIES = "prompt_topics", "reply_topics"
WARM_UP = 200  # conversations that are the reference of a version that came without one
WARM_UP_OF = {THUMBS_DOWN: 100}
ENOUGH = 30  # below this many conversations nothing is said
RECENT = 100
MARK_EVERY = 25
MARKS = 200
EXAMPLES = 5


class DriftStatus(StrEnum):
    """What a detector says."""

    NO_REFERENCE = "no_reference"
    WARMING_UP = "warming_up"
    INSUFFICIENT_TRAFFIC = "insufficient_traffic"
    OK = "ok"
    DRIFT = "drift"


@dataclass
class ObservationLog:
    """Which conversations a detector has seen: how many, when some of them were, and the last ones' completion ids."""

    count: int = 0
    marks: list[tuple[int, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def add(self, completion: str, at: str, keep: int) -> None:
        if self.count % MARK_EVERY == 0:
            self.marks = [*self.marks, (self.count + 1, at)][-MARKS:]
        self.count += 1
        self.ids = [*self.ids, completion][-keep:]

    def when(self, number: int) -> str | None:
        """About when conversation `number` was, counted from 1."""
        earlier = [at for count, at in self.marks if count <= number]
        return earlier[-1] if earlier else None


@dataclass
class ScalarDetector:
    """Watches a number in [0, 1]. Without a reference, its first conversations become one."""

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
        """Forget what was seen; the reference stays."""
        self.seen, self.recent = ObservationLog(), []
        self.above = SequentialTest.fresh(self.above.mean, self.above.run_length) if self.above else None
        self.below = SequentialTest.fresh(self.below.mean, self.below.run_length) if self.below else None

    @property
    def since(self) -> int | None:
        """The conversation with which the change probably began, once there is an alarm."""
        return (self.above.since if self.above else None) or (self.below.since if self.below else None)

    @property
    def rose(self) -> bool:
        return self.above is not None and self.above.alarmed

    @property
    def statistic(self) -> float:
        """The greater one's share of the run length: an alarm at 1."""
        return max((one.statistic / one.run_length for one in (self.above, self.below) if one), default=0.0)

    def status(self) -> DriftStatus:
        if self.above is None:
            return DriftStatus.WARMING_UP
        if self.since is not None:
            return DriftStatus.DRIFT
        return DriftStatus.OK if self.seen.count >= ENOUGH else DriftStatus.INSUFFICIENT_TRAFFIC

    def examples(self) -> list[str]:
        """The conversations since the change that are furthest in its direction."""
        count = min(len(self.recent), self.seen.count - (self.since or 1) + 1)
        order = np.argsort(np.array(self.recent[-count:]), kind="stable")
        ids = self.seen.ids[-count:]
        return [ids[i] for i in (order[::-1] if self.rose else order)[:EXAMPLES]]

    def _freeze(self, reference: Any) -> None:
        self.reference_rows, self.reference_mean = len(reference), float(reference.mean())
        sides = 2 if self.signal in TWO_SIDED else 1  # together they have the run length
        self.above = SequentialTest.fresh(bound(reference), sides * self.run_length)
        if sides == 2:
            self.below = SequentialTest.fresh(bound(1 - reference), sides * self.run_length)

    def to_json(self) -> dict[str, Any]:
        detectors = {side: one.to_json() if one else None for side, one in self._sides().items()}
        return {**asdict(replace(self, above=None, below=None)), **detectors}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        sides = {side: SequentialTest.from_json(found[side]) if found[side] else None for side in ("above", "below")}
        return cls(**{**found, **sides, "seen": log_from_json(found["seen"])})

    def _sides(self) -> dict[str, SequentialTest | None]:
        return {"above": self.above, "below": self.below}


@dataclass
class VectorDetector:
    """Watches embeddings against those of the version's own first conversations, `reference` (float16, as it fills).

    Not against held-out prompts: the topics of a held-out file are seldom mixed as those of the traffic are, and a test
    that notices other topics notices that too.
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
        """Forget what was seen; the reference stays."""
        self.seen, self.windows = ObservationLog(), MmdWindowTest(DIMENSION, self.run_length)

    @property
    def since(self) -> int | None:
        return self.windows.since

    @property
    def statistic(self) -> float:
        """The last test's p-value."""
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
        """The conversations that lie most where there are more of them than in the reference."""
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
    def from_json(cls, found: dict[str, Any]) -> Self:
        parts = {
            "windows": MmdWindowTest.from_json(found["windows"]),
            "reference": base64.b64decode(found["reference"]),
        }
        return cls(**{**found, **parts, "seen": log_from_json(found["seen"])})


Detector = ScalarDetector | VectorDetector


def bound(reference: Any) -> float:
    """The upper confidence bound of the reference's mean: exact for a rate, else for any variable in [0, 1]."""
    if np.isin(reference, (0.0, 1.0)).all():
        return upper_rate_bound(int(reference.sum()), len(reference))
    return min(upper_bound(reference), 1.0)


def log_from_json(found: dict[str, Any]) -> ObservationLog:
    return ObservationLog(found["count"], [(number, at) for number, at in found["marks"]], found["ids"])


def detector_from_json(found: dict[str, Any]) -> Detector | None:
    """None where another version of Polytone wrote it: the detector starts anew then."""
    try:
        detector = VectorDetector.from_json(found) if "windows" in found else ScalarDetector.from_json(found)
    except (KeyError, TypeError, ValueError):
        return None
    return None if isinstance(detector, VectorDetector) and detector.windows.dimension != DIMENSION else detector
