"""Batch slots: few versions fit into one batch of the engine, and each gets its turn, first come, first served.

The engine skips requests whose adapter has no slot, however long they have waited: a flood for one voice starves
another. Here requests wait in one queue. A version that holds a slot lets in more of its requests until another version
has to wait. Then one holder, the one with the fewest answers under way, lets in no more, and when those have ended its
slot goes to the head of the queue.
"""

import asyncio
from collections import deque


class BatchSlots:
    """At most `capacity` different versions answer at once, each any number of requests."""

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
        """Wait until the version holds a slot. Every `acquire` that returns must be followed by one `release`."""
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
        """Raise an error in every request that waits."""
        for _, turn in self._waiting:
            if not turn.done():
                turn.set_exception(error)
        self._waiting.clear()

    def _advance(self) -> None:
        """Give free slots to the head of the queue, and close as many holders as there are versions that wait."""
        while self._waiting and len(self._holders) < self._capacity:
            self._admit(self._waiting[0][0])
        others: dict[str, None] = dict.fromkeys(version for version, _ in self._waiting if version not in self._holders)
        needed = min(len(others), self._capacity)
        open_holders = sorted(
            (version for version in self._holders if version not in self._closing), key=self._holders.__getitem__
        )
        self._closing.update(open_holders[: max(0, needed - len(self._closing))])
        if not others and self._closing:
            self._reopen()

    def _admit(self, version: str) -> None:
        """Let in every request that waits for the version."""
        # A request that was cancelled a moment ago is still in the queue and must not be counted.
        entering = [turn for waiting, turn in self._waiting if waiting == version and not turn.done()]
        self._waiting = deque(entry for entry in self._waiting if entry[0] != version)
        if not entering:
            return
        self._holders[version] = self._holders.get(version, 0) + len(entering)
        for turn in entering:
            turn.set_result(None)

    def _reopen(self) -> None:
        """The requests that holders were closed for have left: holders let in requests again, waiting ones first."""
        for version in self._closing:
            self._admit(version)
        self._closing.clear()
