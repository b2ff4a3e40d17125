"""Two replicas under Ray Serve on one machine, each with a real engine on the tiny base, on one database."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from bench.running import free_port
from polytone.serve.adapters.registry import Registry
from polytone.serve.auth.keys import KeyStore, Kind
from polytone.serve.database.session import open_database
from tests.support.tiny_home import TinyHome

from .marked import ask, restamped, until

pytest.importorskip("ray.serve", reason="no Ray: make .venv/.cluster", exc_type=ImportError)

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

STREAMS = 8
VOICE = "acme"
REPLICAS = 2


@dataclass
class Cluster:
    """Ray's proxy at `url`, the replicas' own ports from `port` on, and two keys' headers."""

    url: str
    port: int
    admin: dict[str, str]
    bot: dict[str, str]
    versions: list[str]

    def start(self, release: str, least: int = REPLICAS) -> None:
        """Start the application, or roll its replicas over to another release; returns when it is done."""
        from ray import serve

        from deploy.ray_app import ClusterArgs, build

        given = ClusterArgs(min_replicas=least, max_replicas=REPLICAS, cpus=1, port=self.port, release=release)
        serve.run(build(given), name="polytone", route_prefix="/")

    def client(self, key: dict[str, str]) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers=key, timeout=60)

    async def replicas(self) -> list[str]:
        """The addresses of the replicas that are ready."""
        found = []
        async with httpx.AsyncClient(timeout=5) as client:
            for port in range(self.port, self.port + 4 * REPLICAS):
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200:
                        found.append(f"http://127.0.0.1:{port}")
        return found

    async def answered(self, replica: str) -> float:
        """How many requests a replica has answered."""
        async with httpx.AsyncClient(headers=self.admin, timeout=10) as client:
            lines = (await client.get(f"{replica}/metrics")).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("polytone_requests_total{"))


@dataclass
class TrafficRecorder:
    """What clients saw that ask again as soon as they were answered, each in a conversation of its own."""

    good: int = 0
    failed: list[tuple[float, str]] = field(default_factory=list)

    async def ask_on(self, client: httpx.AsyncClient, number: int) -> None:
        conversation = {"x-conversation-id": f"customer-{number}"}
        while True:
            began = time.monotonic()
            try:
                trouble = await self._ask(client, conversation, stream=number % 2 == 0)
            except httpx.HTTPError as error:
                trouble = f"{type(error).__name__}: {error}"
            if trouble:
                self.failed.append((began, trouble))
                await asyncio.sleep(0.2)
            else:
                self.good += 1

    async def _ask(self, client: httpx.AsyncClient, headers: dict[str, str], stream: bool) -> str | None:
        body = ask(VOICE, max_tokens=48, stream=stream)
        answer = await client.post("/v1/chat/completions", json=body, headers=headers)
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text}"
        if stream and not answer.text.endswith("data: [DONE]\n\n"):
            return answer.text[-300:]
        return None


@contextlib.asynccontextmanager
async def traffic(cluster: Cluster, streams: int = STREAMS) -> AsyncIterator[TrafficRecorder]:
    seen = TrafficRecorder()
    async with cluster.client(cluster.bot) as client:
        asking = [asyncio.create_task(seen.ask_on(client, number)) for number in range(streams)]
        await more(seen, STREAMS)
        yield seen
        await more(seen, 4 * STREAMS)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def more(seen: TrafficRecorder, answers: int) -> None:
    """Wait for that many more good answers."""
    wanted = seen.good + answers

    async def there() -> bool:
        return seen.good >= wanted

    await until(there, 120)


@pytest.fixture
def cluster(mine: TinyHome, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    import ray
    from ray import serve

    database = open_database(mine.home.database_url)
    registry, old = Registry(database), mine.voices[VOICE]
    versions = [old.version, restamped(mine.home, old, 1).version]
    for version in versions:
        registry.publish(version, "test")
    registry.promote(VOICE, old.version, "test")
    keys = {kind: KeyStore(database).create(kind, kind, "test")[1] for kind in (Kind.ADMIN, Kind.INFERENCE)}
    admin, bot = ({"authorization": f"Bearer {keys[kind]}"} for kind in (Kind.ADMIN, Kind.INFERENCE))
    database.dispose()
    root = str(Path(__file__).parents[2])
    for name, value in {
        "RAY_SERVE_SESSION_ID_HEADER_KEY": "x-conversation-id",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.ray_proxy:middlewares",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": root,
        "POLYTONE_HOME": str(mine.home.root),
        "POLYTONE_BASE": "tiny",
        "POLYTONE_CPU_THREADS": "1",
        "POLYTONE_MAX_CONTEXT": "256",
        "POLYTONE_MAX_STREAMS": "8",
        "POLYTONE_POLL_SECONDS": "0.5",
    }.items():
        monkeypatch.setenv(name, value)
    ray.init(num_cpus=2 * REPLICAS, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        here = Cluster(f"http://127.0.0.1:{port}", 19464, admin, bot, versions)
        yield here
    finally:
        serve.shutdown()
        ray.shutdown()


async def test_two_replicas_are_one_server(cluster: Cluster) -> None:
    await asyncio.to_thread(cluster.start, "1")
    one, other = await cluster.replicas()
    await a_conversation_stays_on_one_replica(cluster, [one, other])
    await a_promotion_reaches_both_within_two_seconds(cluster, [one, other])
    await a_killed_replica_takes_only_what_it_worked_on(cluster)
    await a_rolling_update_fails_nothing(cluster)


async def a_conversation_stays_on_one_replica(cluster: Cluster, replicas: list[str]) -> None:
    used = []
    async with cluster.client(cluster.bot) as client:
        for number in range(8):
            before = [await cluster.answered(replica) for replica in replicas]
            for _ in range(4):
                headers = {"x-conversation-id": f"customer-{number}"}
                answer = await client.post("/v1/chat/completions", json=ask(VOICE, max_tokens=4), headers=headers)
                assert answer.status_code == 200, answer.text
            grown = [await cluster.answered(replica) - was for replica, was in zip(replicas, before, strict=True)]
            assert sorted(grown) == [0, 4], grown
            used.append(grown.index(4))
    assert set(used) == {0, 1}  # and not all of them on the same


async def a_promotion_reaches_both_within_two_seconds(cluster: Cluster, replicas: list[str]) -> None:
    new = cluster.versions[1]
    body = {"versions": [{"version": new, "weight": 100}]}
    async with cluster.client(cluster.admin) as admin, cluster.client(cluster.bot) as bot:
        assert (await admin.put(f"/admin/adapters/{VOICE}/rollout", json=body)).status_code == 200
        began = time.monotonic()

        async def answers() -> bool:
            cards = [(await bot.get(f"{replica}/v1/models/{VOICE}")).json() for replica in replicas]
            return all(card["version"] == new for card in cards)

        await until(answers, 10, pause=0.02)
        took = time.monotonic() - began
        print(f"promoted on both replicas after {took:.2f} s")
        assert took < 2


async def a_killed_replica_takes_only_what_it_worked_on(cluster: Cluster) -> None:
    victim = (await cluster.replicas())[0]
    async with traffic(cluster) as seen:
        killed = time.monotonic()
        kill(victim)
        await until(lambda: back(cluster), 180)
        print(f"killed one of two: back after {time.monotonic() - killed:.0f} s")
    print(f"{seen.good} answered, {len(seen.failed)} failed: {[trouble for _, trouble in seen.failed]}")
    assert len(seen.failed) <= STREAMS
    assert all(began < killed for began, _ in seen.failed), [began - killed for began, _ in seen.failed]
    assert all('"code":"replica_lost"' in trouble.replace(" ", "") for _, trouble in seen.failed), seen.failed


async def a_rolling_update_fails_nothing(cluster: Cluster) -> None:
    async with traffic(cluster) as seen:
        began = time.monotonic()
        await asyncio.to_thread(cluster.start, "2")
        await until(lambda: back(cluster), 180)
        print(f"rolled over after {time.monotonic() - began:.0f} s, {seen.good} answered meanwhile")
    assert seen.failed == []


async def test_a_queue_brings_another_replica(cluster: Cluster) -> None:
    await asyncio.to_thread(cluster.start, "1", least=1)
    assert len(await cluster.replicas()) == 1
    async with traffic(cluster, streams=3 * int(os.environ["POLYTONE_MAX_STREAMS"])) as seen:
        began = time.monotonic()
        await until(lambda: back(cluster), 300)
        print(f"a second replica answered after {time.monotonic() - began:.0f} s; {seen.good} answered meanwhile")
    assert seen.failed == []


async def back(cluster: Cluster) -> bool:
    return len(await cluster.replicas()) == REPLICAS


def kill(replica: str) -> None:
    """`kill -9` of the process that listens there, as when the machine runs out of memory."""
    port = int(replica.rpartition(":")[2])
    (pid,) = {
        one.pid
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid
    }
    os.kill(pid, signal.SIGKILL)
