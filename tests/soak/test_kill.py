"""kill -9 of whatever there is: the app answers throughout, comes back by itself, and nothing is half there."""

import asyncio
import contextlib
import json
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from bench.running import ServerProcess
from polytone.contract.adapter import read_version
from polytone.contract.home import Home
from polytone.contract.version_id import VersionId, voice_of
from polytone.serve.adapters.archive import pack_version
from polytone.serve.adapters.registry import Registry
from polytone.serve.database.session import open_database
from tests.support.processes import served
from tests.support.tiny_home import TinyHome

from .marked import ask, ready, restamped, until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

KILLS = 10
APP_KILLS = 20


def process_named(server: ServerProcess, word: str) -> psutil.Process:
    """A process of the engine, by the title vLLM gives it."""
    for child in server.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if word in " ".join(child.cmdline()) or word in child.name():
                return child
    raise AssertionError(f"no {word} among {[child.cmdline() for child in server.children()]}")


async def test_a_killed_engine_takes_no_one_with_it(mine: TinyHome, registry: Registry, tmp_path: Path) -> None:
    """Mid-stream and mid-load, ten times; what was ready before is ready again. On a CPU it is one process."""
    versions = [manifest.version for manifest in mine.voices.values()]
    extra = [restamped(mine.home, mine.voices["acme"], number, "extra").version for number in range(KILLS)]
    with served(mine.home.root, tmp_path / "log", POLYTONE_BASE="tiny") as server:
        server.until_ready()
        for version in versions:
            registry.publish(version, "soak")
            registry.promote(voice_of(version), version, "soak")
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            await until(lambda: answers(client, versions), 60)
            for number in range(KILLS):
                victim = process_named(server, "EngineCore")
                streams = [asyncio.create_task(stream(client, version)) for version in versions * 2]
                await asyncio.sleep(0.3)
                if number % 4 >= 2:
                    registry.publish(extra[number], "soak")  # the load that is under way when the engine goes
                    await asyncio.sleep(0.55)
                victim.send_signal(signal.SIGKILL)
                began = time.monotonic()
                alive = asyncio.create_task(keep_asking(client))
                bodies = await asyncio.gather(*streams)
                assert all('"error"' in body or "[DONE]" in body for body in bodies), bodies
                await until(lambda: answers(client, versions), 120, 0.5)
                alive.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await alive
                print(f"kill {number + 1}: {victim.pid} gone, everyone back after {time.monotonic() - began:.0f} s")
            desired = registry.desired()
            assert {voice: set(rollout.versions) for voice, rollout in desired.rollouts.items()} == {
                voice_of(version): {version} for version in versions
            }


async def answers(client: httpx.AsyncClient, versions: list[str]) -> bool:
    if not await ready(client):
        return False
    for version in versions:
        answer = await client.post("/v1/chat/completions", json=ask(voice_of(version), max_tokens=4))
        if answer.status_code != 200 or answer.json()["model"] != version:
            return False
    return True


async def stream(client: httpx.AsyncClient, version: str) -> str:
    body = ask(version, stream=True, max_tokens=200, ignore_eos=True)
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code in (200, 503), answer.text
    return answer.text


async def keep_asking(client: httpx.AsyncClient) -> None:
    """The app answers at every moment: health, admin, and a proper refusal for chat."""
    while True:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/admin/adapters")).status_code == 200
        answer = await client.post("/v1/chat/completions", json=ask("tiny", max_tokens=2))
        assert answer.status_code == 200 or (answer.status_code == 503 and answer.headers["retry-after"]), answer.text
        await asyncio.sleep(0.2)


async def test_an_engine_that_hangs_is_rebuilt(mine: TinyHome, tmp_path: Path) -> None:
    """A stopped process neither dies nor answers."""
    with served(mine.home.root, tmp_path / "log", POLYTONE_BASE="tiny", POLYTONE_HANG_SECONDS="3") as server:
        server.until_ready()
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            await until(lambda: ready(client), 60)
            process_named(server, "EngineCore").send_signal(signal.SIGSTOP)
            body = ask("tiny", stream=True, max_tokens=50)
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 503 or "engine_unavailable" in answer.text, answer.text
            await until(lambda: ready(client), 120, 0.5)
            assert (await client.post("/v1/chat/completions", json=ask("tiny", max_tokens=4))).status_code == 200


async def test_a_client_that_leaves_is_noticed_within_a_second(mine: TinyHome, tmp_path: Path) -> None:
    """Streamed or not, the engine's request ends with the client."""
    with served(mine.home.root, tmp_path / "log", POLYTONE_BASE="tiny") as server:
        server.until_ready()
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            for streamed in (True, False):
                body = ask("tiny", stream=streamed, max_tokens=400, ignore_eos=True)
                leaving = asyncio.create_task(client.post("/v1/chat/completions", json=body))
                await until(lambda: running(client, 1), 10, 0.02)
                leaving.cancel()
                began = time.monotonic()
                await until(lambda: running(client, 0), 10, 0.02)
                print(f"streamed {streamed}: gone from the engine after {time.monotonic() - began:.2f} s")
                assert time.monotonic() - began < 1.0


async def running(client: httpx.AsyncClient, count: int) -> bool:
    text = (await client.get("/metrics")).text
    line = next(line for line in text.splitlines() if line.startswith("vllm:num_requests_running"))
    return float(line.rpartition(" ")[2]) == count


async def test_the_http_side_is_up_within_five_seconds(mine: TinyHome, tmp_path: Path) -> None:
    with served(mine.home.root, tmp_path / "log", POLYTONE_BASE="tiny") as server:
        began = time.monotonic()
        async with httpx.AsyncClient(base_url=server.url, timeout=10) as client:
            await until(lambda: healthy(client), 60, 0.05)
            print(f"HTTP up after {time.monotonic() - began:.1f} s")
            answer = await client.post("/v1/chat/completions", json=ask("tiny"))
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert (await client.get("/admin/adapters")).status_code == 200
        assert time.monotonic() - began < 6


async def healthy(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/healthz")).status_code == 200
    except httpx.TransportError:
        return False


async def test_the_app_itself_killed_at_any_moment_leaves_nothing_half_there(mine: TinyHome, tmp_path: Path) -> None:
    """Uploads, promotes and retires, twenty kills: after a restart every version is whole or not there, and every voice
    is answered by something loadable."""
    home = mine.home
    archives = []
    for number in range(30):
        version = restamped(mine.home, mine.voices["acme"], number, "killed").version
        target = tmp_path / f"{number}.tar.gz"
        pack_version(mine.home, version, target)
        archives.append((version, target.read_bytes()))
        shutil.rmtree(home.adapter_folder(version))  # it comes back by upload only
    chance = random.Random(3)
    for kill in range(APP_KILLS):
        with served(home.root, tmp_path / f"log{kill}", POLYTONE_BASE="tiny", POLYTONE_PAGE="false") as server:
            async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
                await until(partial(healthy, client), 60, 0.05)
                work = asyncio.create_task(change_things(client, archives, chance.randrange(1000)))
                await asyncio.sleep(chance.random() * 1.5)
                children = server.children()
                server.popen.send_signal(signal.SIGKILL)
                with contextlib.suppress(httpx.TransportError, asyncio.CancelledError):
                    await work
                _, left = psutil.wait_procs(children, timeout=20)
                assert not left, left
        check_whole(home)
    with served(home.root, tmp_path / "log", POLYTONE_BASE="tiny") as server:
        server.until_ready()
        async with httpx.AsyncClient(base_url=server.url) as client:
            states = (await client.get("/admin/adapters")).json()["adapters"]
        print(json.dumps(states)[:400])
        for adapter in states:
            assert {version["state"] for version in adapter["versions"]} <= {"ready"}, adapter
    check_whole(home)


async def test_an_engine_does_not_outlive_its_app(mine: TinyHome, tmp_path: Path) -> None:
    """It stayed for as long as nobody looked, with all its memory, beside that of the server started next."""
    with served(mine.home.root, tmp_path / "log", POLYTONE_BASE="tiny", POLYTONE_PAGE="false") as server:
        server.until_ready()
        engine = process_named(server, "EngineCore")
        server.popen.kill()
        try:
            engine.wait(30)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                engine.kill()


async def change_things(client: httpx.AsyncClient, archives: list[tuple[str, bytes]], seed: int) -> None:
    chance = random.Random(seed)
    while True:
        version, content = chance.choice(archives)
        one = VersionId.parse(version)
        what = chance.random()
        if what < 0.5:
            await client.post(f"/admin/adapters/{one.voice}/versions", content=content)
        elif what < 0.8:
            await client.put(f"/admin/adapters/{one.voice}/rollout", json={"versions": [{"version": version}]})
        else:
            await client.delete(f"/admin/adapters/{one.voice}/versions/{one.digest}")


def check_whole(home: Home) -> None:
    """Folders and database agree: what is published is on disk, whole; what answers is published."""
    database = open_database(home.database_url)
    desired = Registry(database).desired()
    for version in desired.versions:
        read_version(home, version)
    for rollout in desired.rollouts.values():
        assert rollout.versions <= desired.versions
    for folder in home.adapters.glob("*/*"):
        if not folder.name.startswith(".") and not folder.parent.name.startswith("."):
            read_version(home, str(VersionId(folder.parent.name, folder.name)))
    database.dispose()


async def test_a_promoted_version_answers_within_two_seconds(
    mine: TinyHome, registry: Registry, tmp_path: Path
) -> None:
    """The replica's loop: from the change in the database to the first answer of the version that was promoted."""
    source = mine.voices["acme"]
    versions = [source.version, restamped(mine.home, source, 1).version]
    with served(mine.home.root, tmp_path / "log", POLYTONE_BASE="tiny") as server:
        server.until_ready()
        for version in versions:
            registry.publish(version, "soak")
        registry.promote("acme", versions[0], "soak")
        slowest = 0.0
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            await until(lambda: answers(client, versions[:1]), 60)
            await asyncio.sleep(3)  # the other version is loaded and proven
            for number in range(1, 11):
                registry.promote("acme", versions[number % 2], "soak")
                began = time.monotonic()
                await until(lambda number=number: answers(client, [versions[number % 2]]), 10, 0.05)
                slowest = max(slowest, time.monotonic() - began)
        print(f"the slowest of 10 promotes answered after {slowest:.2f} s")
        assert slowest <= 2
