"""Rollouts: the versions that answer for a voice, with their shares."""

import hashlib
import random
from dataclasses import dataclass, field
from typing import Any

from polytone.contract.errors import InputError
from polytone.contract.names import check_name
from polytone.contract.version_id import VersionId

MAX_PARTS = 16
MAX_WEIGHT = 1_000_000
POINTS = 2**64


@dataclass(frozen=True)
class Part:
    """One version of a rollout. Its share of the conversations is its weight relative to the others'."""

    version: str
    weight: int


@dataclass(frozen=True)
class Rollout:
    """Who answers for a voice. Every change makes a new rollout, whose `generation` is one higher; `previous` is the
    generation that a rollback leads to. Without parts nobody answers.
    """

    generation: int
    parts: tuple[Part, ...]
    previous: int | None = field(default=None, compare=False)

    @property
    def versions(self) -> frozenset[str]:
        return frozenset(part.version for part in self.parts)

    @property
    def main(self) -> str:
        """The version with the greatest weight; the first of them."""
        return max(self.parts, key=lambda part: part.weight).version

    @property
    def sole(self) -> str | None:
        """The version that answers every conversation, if one does."""
        answering = [part.version for part in self.parts if part.weight]
        return answering[0] if len(answering) == 1 else None

    def shares(self) -> dict[str, float]:
        """Version -> its share of the conversations, from 0 to 1."""
        total = sum(part.weight for part in self.parts)
        return {part.version: part.weight / total for part in self.parts}

    def as_json(self) -> dict[str, Any]:
        return {
            "generation": self.generation,
            "versions": [{"version": part.version, "weight": part.weight} for part in self.parts],
        }


def check_parts(voice: str, parts: list[Part]) -> None:
    """Check the parts of a new rollout.

    Raises:
        InputError: `rollout_invalid`, `alias_mismatch`, `invalid_name`, `invalid_version`.
    """
    check_name(voice, "voice")
    if not 1 <= len(parts) <= MAX_PARTS or len({part.version for part in parts}) != len(parts):
        raise InputError(
            f"versions: a rollout names 1 to {MAX_PARTS} different versions.", code="rollout_invalid", param="versions"
        )
    for part in parts:
        other = VersionId.parse(part.version).voice
        if other != voice:
            raise InputError(
                f"{part.version} is a version of {other}, not of {voice}.",
                code="alias_mismatch",
                param="versions",
            )
        if not 0 <= part.weight <= MAX_WEIGHT:
            raise InputError(
                f"{part.version}: the weight must be a whole number from 0 to {MAX_WEIGHT}, not {part.weight}.",
                code="rollout_invalid",
                param="versions",
            )
    if not any(part.weight for part in parts):
        raise InputError("versions: at least one weight must be above 0.", code="rollout_invalid", param="versions")


def choose(voice: str, rollout: Rollout, sticky: str | None) -> str:
    """Choose the version that answers.

    The same `sticky` (a conversation, a user or a key) always falls on the same point between 0 and 1, and the versions
    share that line in the order of the rollout. A canary that stands last and grows keeps the conversations it has.
    Without `sticky` the point is drawn at random.
    """
    left = point(voice, sticky) * sum(part.weight for part in rollout.parts)
    for part in rollout.parts:
        left -= part.weight
        if left < 0:
            return part.version
    return next(part.version for part in reversed(rollout.parts) if part.weight)


def point(voice: str, sticky: str | None) -> float:
    """A point between 0 and 1."""
    if sticky is None:
        return random.random()  # noqa: S311 - spreads load, protects no secret
    digest = hashlib.sha256(f"{voice}\0{sticky}".encode()).digest()
    return int.from_bytes(digest[:8]) / POINTS
