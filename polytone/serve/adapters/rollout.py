"""Which version of a voice's rollout answers a conversation: by weight, and always the same one."""

import hashlib
import random

from .registry import Rollout

POINTS = 2**64


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
