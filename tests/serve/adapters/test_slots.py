"""Slots: never more versions than fit, nobody forgotten, and a flood for one voice does not starve another."""

import asyncio
import random

import pytest

from polytone.contract.errors import UnavailableError
from polytone.serve.adapters.batch_slots import BatchSlots


async def test_a_version_that_holds_a_slot_lets_more_requests_in() -> None:
    slots = BatchSlots(1)
    for _ in range(3):
        await asyncio.wait_for(slots.acquire("a"), 1)
    assert slots.waiting == 0


async def test_a_rare_voice_gets_its_turn_while_another_floods() -> None:
    """One slot: the flood's later requests queue behind the rare one, and all of them follow after it."""
    slots = BatchSlots(1)
    done: list[str] = []

    async def ask(name: str, version: str) -> None:
        await slots.acquire(version)
        await asyncio.sleep(0.001)
        done.append(name)
        slots.release(version)

    early = [asyncio.create_task(ask(f"flood-{number}", "flood")) for number in range(5)]
    await asyncio.sleep(0)
    rare = asyncio.create_task(ask("rare", "rare"))
    await asyncio.sleep(0)
    late = [asyncio.create_task(ask(f"late-{number}", "flood")) for number in range(5)]
    async with asyncio.timeout(5):
        await asyncio.gather(*early, rare, *late)
    assert done.index("rare") == 5


async def test_only_one_holder_is_closed_for_one_that_waits() -> None:
    slots = BatchSlots(3)
    for version, times in (("a", 3), ("b", 1), ("c", 2)):
        for _ in range(times):
            await slots.acquire(version)
    waiting = asyncio.create_task(slots.acquire("d"))
    await asyncio.sleep(0)
    await asyncio.wait_for(slots.acquire("a"), 1)
    await asyncio.wait_for(slots.acquire("c"), 1)
    behind = asyncio.create_task(slots.acquire("b"))
    await asyncio.sleep(0)
    assert not behind.done()
    slots.release("b")
    await asyncio.wait_for(waiting, 1)


async def test_a_holder_opens_again_when_the_one_that_waited_gives_up() -> None:
    slots = BatchSlots(1)
    await slots.acquire("a")
    waiting = asyncio.create_task(slots.acquire("b"))
    await asyncio.sleep(0)
    behind = asyncio.create_task(slots.acquire("a"))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait_for(behind, 1)


async def test_those_who_wait_are_told_when_the_engine_is_gone() -> None:
    slots = BatchSlots(1)
    await slots.acquire("a")
    waiting = asyncio.create_task(slots.acquire("b"))
    await asyncio.sleep(0)
    slots.fail_waiting(UnavailableError("gone", code="engine_unavailable"))
    with pytest.raises(UnavailableError):
        await waiting


@pytest.mark.parametrize("seed", range(20))
async def test_any_crowd_is_served_within_capacity_and_everyone_leaves(seed: int) -> None:
    """Random requests and cancellations: at most `capacity` versions at once, no request lost, nothing left over."""
    chance = random.Random(seed)
    capacity = chance.randint(1, 4)
    slots = BatchSlots(capacity)
    inside: dict[str, int] = {}

    async def ask(version: str) -> None:
        await asyncio.sleep(chance.random() * 0.02)
        await slots.acquire(version)
        inside[version] = inside.get(version, 0) + 1
        assert sum(count > 0 for count in inside.values()) <= capacity
        try:
            await asyncio.sleep(chance.random() * 0.005)
        finally:
            inside[version] -= 1
            slots.release(version)

    tasks = [asyncio.create_task(ask(f"v{chance.randint(0, 7)}")) for _ in range(80)]
    await asyncio.sleep(0.01)
    for task in chance.sample(tasks, 20):
        task.cancel()
    async with asyncio.timeout(10):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
    assert slots.waiting == 0
    assert not slots._holders
    assert not slots._closing
