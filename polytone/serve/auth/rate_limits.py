"""Who may ask now: requests and tokens per minute and at once for a key, and at once in all."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from polytone.contract.errors import LimitError

from .keys import Key

MINUTE = 60.0


class Window:
    """What was used in the last minute, kept by the second."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, int]] = deque()
        self._total = 0

    def add(self, amount: int, now: float) -> None:
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = (second, self._seconds[-1][1] + amount)
        else:
            self._seconds.append((second, amount))
        self._total += amount

    def used(self, now: float) -> int:
        while self._seconds and self._seconds[0][0] <= now - MINUTE:
            self._total -= self._seconds.popleft()[1]
        return self._total

    def seconds_until(self, room: int, limit: int, now: float) -> float:
        """Until `room` more fit under `limit`."""
        over = self.used(now) + room - limit
        for second, amount in self._seconds:
            if over <= 0:
                break
            over -= amount
            if over <= 0:
                return max(0.0, second + MINUTE - now) + 1
        return 0.0


@dataclass
class Usage:
    """One key's use of this replica."""

    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    at_once: int = 0


class Admission:
    """Counts on this replica; with several replicas each key has its limits on each of them."""

    def __init__(self, at_once: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = at_once
        self._clock = clock
        self._usage: dict[str, Usage] = {}
        self.at_once = 0

    def enter(self, key: Key | None) -> None:
        """Take a place; each `enter` that returns is followed by one `leave`.

        Raises:
            LimitError: `overloaded`, `too_many_at_once`, `requests_per_minute` or `tokens_per_minute`.
        """
        if self.at_once >= self._limit:
            raise LimitError(f"The server works on {self.at_once} requests already.", code="overloaded", retry_after=2)
        if key is not None:
            self._check_key(key, self._usage.setdefault(key.id, Usage()))
        self.at_once += 1

    def leave(self, key: Key | None, tokens: int) -> None:
        self.at_once -= 1
        if key is not None:
            usage = self._usage[key.id]
            usage.at_once -= 1
            usage.tokens.add(tokens, self._clock())

    def headers(self, key: Key | None) -> dict[str, str]:
        """OpenAI's rate-limit headers for what the key has."""
        if key is None:
            return {}
        now, usage = self._clock(), self._usage.get(key.id, Usage())
        said = {}
        for name, limit, window in (
            ("requests", key.requests_per_minute, usage.requests),
            ("tokens", key.tokens_per_minute, usage.tokens),
        ):
            if limit is not None:
                said[f"x-ratelimit-limit-{name}"] = str(limit)
                said[f"x-ratelimit-remaining-{name}"] = str(max(0, limit - window.used(now)))
                said[f"x-ratelimit-reset-{name}"] = f"{math.ceil(window.seconds_until(limit, limit, now))}s"
        return said

    def _check_key(self, key: Key, usage: Usage) -> None:
        now = self._clock()
        if key.concurrent_requests is not None and usage.at_once >= key.concurrent_requests:
            raise LimitError(
                f"The key {key.name} has {usage.at_once} requests under way and may have {key.concurrent_requests}.",
                code="too_many_at_once",
                retry_after=1,
            )
        for code, limit, window in (
            ("requests_per_minute", key.requests_per_minute, usage.requests),
            ("tokens_per_minute", key.tokens_per_minute, usage.tokens),
        ):
            if limit is not None and window.used(now) >= limit:
                raise LimitError(
                    f"The key {key.name} has used its {limit} {code.replace('_', ' ')}.",
                    code=code,
                    retry_after=window.seconds_until(1, limit, now),
                )
        usage.at_once += 1
        usage.requests.add(1, now)
