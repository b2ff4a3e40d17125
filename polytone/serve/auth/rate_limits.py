"""Limits on requests: per minute and concurrent for each key, and concurrent for the whole server."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from polytone.contract.errors import LimitError

from .keys import Key

MINUTE = 60.0


class Window:
    """A sum over the last minute, in steps of a second."""

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

    def seconds_until(self, amount: int, limit: int, now: float) -> float:
        """Seconds until `amount` more fit under `limit`."""
        over = self.used(now) + amount - limit
        for second, used in self._seconds:
            if over <= 0:
                break
            over -= used
            if over <= 0:
                return max(0.0, second + MINUTE - now) + 1
        return 0.0


@dataclass
class Usage:
    """What a key has used of this replica."""

    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    concurrent: int = 0


class Admission:
    """Admits requests and counts them. Each replica counts for itself, so limits apply to each replica."""

    def __init__(self, at_once: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = at_once
        self._clock = clock
        self._usage: dict[str, Usage] = {}
        self.at_once = 0

    def enter(self, key: Key | None) -> None:
        """Admit a request. Each `enter` that returns must be followed by one `leave`.

        Raises:
            LimitError: `overloaded`, `too_many_at_once`, `requests_per_minute` or `tokens_per_minute`.
        """
        if self.at_once >= self._limit:
            raise LimitError(
                f"The server is already working on {self.at_once} requests.", code="overloaded", retry_after=2
            )
        if key is not None:
            self._check_key(key, self._usage.setdefault(key.id, Usage()))
        self.at_once += 1

    def leave(self, key: Key | None, tokens: int) -> None:
        self.at_once -= 1
        if key is not None:
            usage = self._usage[key.id]
            usage.concurrent -= 1
            usage.tokens.add(tokens, self._clock())

    def headers(self, key: Key | None) -> dict[str, str]:
        """OpenAI's rate-limit headers for the limits of the key."""
        if key is None:
            return {}
        now, usage = self._clock(), self._usage.get(key.id, Usage())
        headers = {}
        for name, limit, window in (
            ("requests", key.requests_per_minute, usage.requests),
            ("tokens", key.tokens_per_minute, usage.tokens),
        ):
            if limit is not None:
                headers[f"x-ratelimit-limit-{name}"] = str(limit)
                headers[f"x-ratelimit-remaining-{name}"] = str(max(0, limit - window.used(now)))
                headers[f"x-ratelimit-reset-{name}"] = f"{math.ceil(window.seconds_until(limit, limit, now))}s"
        return headers

    def _check_key(self, key: Key, usage: Usage) -> None:
        now = self._clock()
        if key.concurrent_requests is not None and usage.concurrent >= key.concurrent_requests:
            raise LimitError(
                f"The key {key.name} has {usage.concurrent} requests running; it may have {key.concurrent_requests}.",
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
        usage.concurrent += 1
        usage.requests.add(1, now)
