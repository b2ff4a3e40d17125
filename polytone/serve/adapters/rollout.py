"""Which version of a voice's rollout answers a conversation: by weight, and always the same one."""

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
    """One version of a rollout and its share, relative to the other weights."""

    version: str
    weight: int


@dataclass(frozen=True)
class Rollout:
    """Who answers for a voice; `generation` grows by one with every change, `previous` is the one to roll back to."""

    generation: int
    parts: tuple[Part, ...]
    previous: int | None = field(default=None, compare=False)

    @property
    def versions(self) -> frozenset[str]:
        return frozenset(part.version for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        return {
            "generation": self.generation,
            "versions": [{"version": part.version, "weight": part.weight} for part in self.parts],
        }


def check_parts(voice: str, parts: list[Part]) -> None:
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
    if not sum(part.weight for part in parts):
        raise InputError("versions: at least one weight must be above 0.", code="rollout_invalid", param="versions")


def choose(voice: str, rollout: Rollout, sticky: str | None) -> str:
    """The version that answers.

    The same `sticky` (a conversation, a user or a key) always falls on the same point between 0 and 1, and versions
    share that line in the order of the rollout: a canary that stands last and grows keeps the conversations it has.
    Without `sticky` the point is drawn.
    """
    total = sum(part.weight for part in rollout.parts)
    left = point(voice, sticky) * total
    for part in rollout.parts:
        left -= part.weight
        if left < 0:
            return part.version
    return next(part.version for part in reversed(rollout.parts) if part.weight)


def point(voice: str, sticky: str | None) -> float:
    if sticky is None:
        return random.random()  # noqa: S311 - spreads load, keeps no secret
    digest = hashlib.sha256(f"{voice}\0{sticky}".encode()).digest()
    return int.from_bytes(digest[:8]) / POINTS
