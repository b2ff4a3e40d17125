"""Unload is real, and a crowd of requests is bounded: measured in the processes' memory."""

import asyncio
import subprocess
import time
from pathlib import Path

import httpx
import psutil
import pytest

from bench.running import ServerProcess
from polytone.serve.adapters.registry import Registry
from tests.support.processes import polytone, served
from tests.support.tiny_home import TinyHome

from .marked import ask, restamped, state_of, until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

VERSIONS = 200
WARM = 20
CROWD = 500
MIB = 1 << 20


def engine_memory(server: ServerProcess) -> int:
    """Unshared memory of the engine's processes, in bytes."""
    return sum(child.memory_full_info().uss for child in server.children())


async def test_two_hundred_versions_come_and_go_and_leave_no_memory_behind(
    mine: TinyHome, registry: Registry, tmp_path: Path
) -> None:
    made = [restamped(mine.home, mine.voices["acme"], number, "memo").version for number in range(VERSIONS + WARM)]
    with served(mine.home.root, tmp_path / "log", POLYTONE_BASE="tiny", POLYTONE_POLL_SECONDS="0.05") as server:
        server.until_ready()
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:

            async def come_and_go(version: str) -> None:
                registry.publish(version, "soak")
                await until(lambda: is_(client, version, "ready"), 30, 0.05)
                answer = await client.post("/v1/chat/completions", json=ask(version, max_tokens=4))
                assert answer.json()["model"] == version
                registry.retire(version, "soak")
                await until(lambda: is_(client, version, "gone"), 30, 0.05)

            for version in made[:WARM]:
                await come_and_go(version)
            before = engine_memory(server)
            for version in made[WARM:]:
                await come_and_go(version)
            after = engine_memory(server)
            print(f"engine memory {before / MIB:.1f} MiB, after {VERSIONS} versions {after / MIB:.1f} MiB")
            assert after <= before * 1.05
            text = (await client.get("/metrics")).text
            assert "polytone_adapters_resident 0.0" in text


async def is_(client: httpx.AsyncClient, version: str, state: str) -> bool:
    return await state_of(client, version) == state


async def test_five_hundred_requests_at_once_are_answered_or_told_when_to_come_back(
    mine: TinyHome, tmp_path: Path
) -> None:
    with served(mine.home.root, tmp_path / "log", POLYTONE_BASE="tiny") as server:
        server.until_ready()
        app = psutil.Process(server.popen.pid)
        before = app.memory_info().rss + engine_memory(server)
        limits = httpx.Limits(max_connections=CROWD)
        async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:

            async def one(number: int) -> httpx.Response:
                return await client.post(
                    "/v1/chat/completions", json=ask("tiny", max_tokens=64, stream=number % 2 == 0, ignore_eos=True)
                )

            answers = await asyncio.gather(*map(one, range(CROWD)))
            after = app.memory_info().rss + engine_memory(server)
            good = [answer for answer in answers if answer.status_code == 200]
            refused = [answer for answer in answers if answer.status_code != 200]
            print(f"{len(good)} answered, {len(refused)} refused, memory grew by {(after - before) / MIB:.0f} MiB")
            assert {answer.status_code for answer in refused} <= {429, 503}
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
            assert all("[DONE]" in a.text or a.json()["choices"][0]["finish_reason"] for a in good)
            assert len(good) >= 128
            assert after - before < 300 * MIB
            assert (await client.post("/v1/chat/completions", json=ask("tiny", max_tokens=4))).status_code == 200


def publish_and_promote(mine: TinyHome, version: str) -> subprocess.CompletedProcess[str]:
    published = polytone("adapters", "publish", version, home=mine.home.root, POLYTONE_BASE="tiny")
    return published if published.returncode else polytone("adapters", "promote", version, home=mine.home.root)


async def test_a_rare_voice_is_not_starved_by_a_flood_on_the_only_slot(mine: TinyHome, tmp_path: Path) -> None:
    """With one resident slot, a rare voice's request is answered within twice the time of its place in the queue."""
    settings = {
        "POLYTONE_BASE": "tiny",
        "POLYTONE_MAX_RESIDENT_ADAPTERS": "1",
        "POLYTONE_MAX_BATCH_ADAPTERS": "1",
        "POLYTONE_MAX_STREAMS": "8",
        "POLYTONE_MAX_WAITING": "200",
    }
    flood, rare = (manifest.version for manifest in mine.voices.values())
    with served(mine.home.root, tmp_path / "log", **settings) as server:
        server.until_ready()
        for version in (flood, rare):
            done = await asyncio.to_thread(publish_and_promote, mine, version)
            assert done.returncode == 0, done.stderr
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            ended: dict[str, list[float]] = {flood: [], rare: []}

            async def one(version: str) -> None:
                answer = await client.post("/v1/chat/completions", json=ask(version, max_tokens=40, ignore_eos=True))
                assert answer.json()["model"] == version
                ended[version].append(time.monotonic())

            await one(flood)
            began = time.monotonic()
            before = [asyncio.create_task(one(flood)) for _ in range(40)]
            await asyncio.sleep(0.2)
            waiting = asyncio.create_task(one(rare))
            await asyncio.sleep(0.05)
            behind = [asyncio.create_task(one(flood)) for _ in range(60)]
            await asyncio.gather(waiting, *before, *behind)
            place = sorted(ended[flood])[40] - began
            took = ended[rare][-1] - began
            print(f"40 requests before it took {place:.1f} s, the rare voice {took:.1f} s")
            assert took <= 2 * place
