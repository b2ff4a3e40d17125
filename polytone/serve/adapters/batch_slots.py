"""A few slots for many voices: who may answer now, first come first served, and no rare voice waits for ever.

The engine batches requests of a limited number of different adapters and skips, without ageing, those whose adapter has
no slot: a flood for one voice starves another. Here requests wait in one queue. A version that holds a slot lets more
of its requests through until another version has to wait; then one holder, the one with the fewest answers under way,
takes no more, and its slot goes to the head of the queue when its answers have ended.
"""

import asyncio
from collections import deque


class BatchSlots:
    """At most `capacity` different versions answer at once; each for any number of requests."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._holders: dict[str, int] = {}
        self._closing: set[str] = set()
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def holds(self, version: str) -> bool:
        return version in self._holders

    async def acquire(self, version: str) -> None:
        """Wait for a place; every `acquire` that returns is followed by one `release`."""
        if version in self._holders and version not in self._closing:
            self._holders[version] += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((version, turn))
        self._advance()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(version)
            else:
                self._waiting = deque(entry for entry in self._waiting if entry[1] is not turn)
                self._advance()
            raise

    def release(self, version: str) -> None:
        self._holders[version] -= 1
        if not self._holders[version]:
            del self._holders[version]
            self._closing.discard(version)
            self._advance()

    def fail_waiting(self, error: Exception) -> None:
        """Nobody who waits gets a place."""
        for _, turn in self._waiting:
            if not turn.done():
                turn.set_exception(error)
        self._waiting.clear()

    def _advance(self) -> None:
        """Give free slots to the head of the queue, and close as many holders as others wait for."""
        while self._waiting and len(self._holders) < self._capacity:
            self._admit(self._waiting[0][0])
        others: dict[str, None] = dict.fromkeys(version for version, _ in self._waiting if version not in self._holders)
        wanted = min(len(others), self._capacity)
        open_holders = sorted(
            (version for version in self._holders if version not in self._closing), key=self._holders.__getitem__
        )
        self._closing.update(open_holders[: max(0, wanted - len(self._closing))])
        if not others and self._closing:
            self._reopen()

    def _admit(self, version: str) -> None:
        """Everyone who waits for `version` enters with it."""
        # One whose task was cancelled a moment ago is still in the queue and must not be counted.
        entering = [turn for waiting, turn in self._waiting if waiting == version and not turn.done()]
        self._waiting = deque(entry for entry in self._waiting if entry[0] != version)
        if not entering:
            return
        self._holders[version] = self._holders.get(version, 0) + len(entering)
        for turn in entering:
            turn.set_result(None)

    def _reopen(self) -> None:
        """Those they were closed for left: holders take requests again, the waiting ones first."""
        for version in self._closing:
            self._admit(version)
        self._closing.clear()
