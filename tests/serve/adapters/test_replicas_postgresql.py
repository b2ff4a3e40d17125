"""Two replicas on one PostgreSQL: one order of changes, a canary's share, and a crash that costs nothing."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, select

from bench.running import ServerProcess
from polytone.contract.home import Home
from polytone.serve.adapters.registry import Registry
from polytone.serve.adapters.replicas import Replicas
from polytone.serve.database.session import LOCK_SECONDS, open_database, reading
from polytone.serve.database.tables import AnswerRow, FeedbackRow
from tests.support import postgresql as own
from tests.support.adapters import make_base, make_version
from tests.support.replica import replicas
from tests.support.serving import HELLO

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not own.installed(), reason=own.MISSING)]

VERSIONS, PROMOTES = 10, 60
CONVERSATIONS, AGAIN, CONNECTIONS = 10_000, 1_000, 4
WEIGHTS = (70, 20, 10)
AWAY_SECONDS, ANSWERS, REFUSALS, CONFIRMED = 3, 100, 20, 20
CHAT, ROLLOUT, FEEDBACK = "/v1/chat/completions", "/admin/adapters/acme/rollout", "/v1/feedback"
QUESTION = {"model": "acme", "messages": HELLO}


@dataclass(frozen=True)
class Pair:
    """Two replicas with homes of their own and one folder of adapters; `versions` are of the voice acme."""

    postgresql: own.Postgresql
    database: Engine
    versions: list[str]
    replicas: list[ServerProcess]

    @asynccontextmanager
    async def clients(self) -> AsyncIterator[list[httpx.AsyncClient]]:
        """One for each replica."""
        async with AsyncExitStack() as stack:
            clients = [httpx.AsyncClient(base_url=one.url, timeout=60) for one in self.replicas]
            yield [await stack.enter_async_context(client) for client in clients]

    def rollout(self, *weights: int) -> dict[str, Any]:
        """What to PUT so that the first versions have these weights."""
        return {"versions": [{"version": v, "weight": w} for v, w in zip(self.versions, weights, strict=False)]}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    root = tmp_path_factory.mktemp("replicas")
    (root / "adapters").mkdir()
    homes = [Home(root / name) for name in ("one", "two")]
    for home in homes:
        base = make_base(home)
        home.adapters.symlink_to(root / "adapters")
    versions = [make_version(homes[0], base, "acme", seed).version for seed in range(VERSIONS)]
    with own.running_postgresql() as server, replicas(homes, url := server.empty()) as started:
        database = open_database(url)
        for version in versions:
            Registry(database).publish(version, "test")
        pair = Pair(server, database, versions, started)
        asyncio.run(until_loaded(pair))
        yield pair
        database.dispose()


async def until_loaded(pair: Pair) -> None:
    """Every version is ready on both."""

    async def loaded() -> bool:
        for one in pair.replicas:
            assert one.popen.poll() is None, one.log.read_text()
        try:
            found = [[version["state"] for version in (await state(client))["versions"]] for client in clients]
        except httpx.TransportError:
            return False
        return found == [["ready"] * VERSIONS] * 2

    async with pair.clients() as clients:
        await until(loaded, 120)


async def state(client: httpx.AsyncClient) -> dict[str, Any]:
    """What a replica says of the voice."""
    listed: list[dict[str, Any]] = (await client.get("/admin/adapters")).json()["adapters"]
    return next((one for one in listed if one["name"] == "acme"), {"versions": []})


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)


async def until_answered_with(clients: list[httpx.AsyncClient], rollout: dict[str, Any]) -> None:
    wanted = {name: rollout[name] for name in ("generation", "versions")}

    async def both() -> bool:
        return [(await state(client))["answers"] for client in clients] == [wanted] * 2

    await until(both)


async def test_promotes_from_both_at_once_make_one_chain(pair: Pair) -> None:
    """On PostgreSQL most of them were once refused with a conflict, though nobody had said what they replace."""
    wanted = pair.versions * (PROMOTES // VERSIONS)
    random.Random(8).shuffle(wanted)
    async with pair.clients() as clients:

        async def promote(number: int, version: str) -> tuple[int, str]:
            answer = await clients[number % 2].put(ROLLOUT, json={"versions": [{"version": version}]})
            assert answer.status_code == 200, answer.text
            return answer.json()["generation"], version

        told = set(await asyncio.gather(*(promote(number, version) for number, version in enumerate(wanted))))
        audit = (await clients[0].get("/admin/audit", params={"target": "acme"})).json()["entries"][::-1]
        history = (await clients[1].get("/admin/adapters/acme")).json()["history"][::-1]
        steps = [entry["after"] for entry in audit]
        await until_answered_with(clients, steps[-1])

    assert [step["generation"] for step in steps] == list(range(1, len(steps) + 1))
    assert VERSIONS <= len(steps) <= PROMOTES
    assert [entry["before"] for entry in audit] == [None, *steps[:-1]]
    assert [{**step, "previous": step["generation"] - 1 or None} for step in steps] == history
    # Everyone was told of a step of their own, or, where their version answered already, of the one that made it so.
    assert told == {(step["generation"], step["versions"][0]["version"]) for step in steps}


async def test_a_canary_has_its_share_over_both_and_conversations_stay(pair: Pair) -> None:
    async with pair.clients() as clients:
        rollout = (await clients[0].put(ROLLOUT, json=pair.rollout(*WEIGHTS))).json()
        await until_answered_with(clients, rollout)
    names = [f"conversation {number}" for number in range(CONVERSATIONS)]
    found = await ask_both(pair, names[::2], names[1::2])
    for answered in (found[0], found[1], found[0] | found[1]):
        counts = Counter(answered.values())
        for version, weight in zip(pair.versions, WEIGHTS, strict=False):
            assert counts[version] / len(answered) == pytest.approx(weight / sum(WEIGHTS), abs=0.02)
    elsewhere = await ask_both(pair, names[1:AGAIN:2], names[:AGAIN:2])
    assert elsewhere == [
        {name: there[name] for name in here} for here, there in zip(elsewhere, found[::-1], strict=True)
    ]
    assert [len(answered) for answered in (*found, *elsewhere)] == [CONVERSATIONS // 2] * 2 + [AGAIN // 2] * 2


async def ask_both(pair: Pair, one: list[str], two: list[str]) -> list[dict[str, str]]:
    """Conversation -> the version that answered, of each replica."""
    found: list[dict[str, str]] = [{}, {}]
    async with asyncio.TaskGroup() as group:
        for replica, names, answered in zip(pair.replicas, (one, two), found, strict=True):
            for number in range(CONNECTIONS):
                group.create_task(ask(replica.port, names[number::CONNECTIONS], answered))
    return found


async def ask(port: int, names: list[str], answered: dict[str, str]) -> None:
    """One after the other over one connection. No client of a library: that takes longer than the server."""
    body = json.dumps(QUESTION)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for name in names:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\nx-conversation-id: {name}\r\ncontent-length: {len(body)}"
        writer.write(f"{head}\r\n\r\n{body}".encode())
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = dict(line.split(": ", 1) for line in lines if line)
        await reader.readexactly(int(headers["content-length"]))
        assert status == "HTTP/1.1 200 OK"
        answered[name] = headers["x-polytone-adapter"]
    writer.close()
    await writer.wait_closed()


@dataclass
class Seen:
    """What clients were told: ids of answers, texts of feedback that got its 201, how often others were refused, and
    the longest that a feedback took."""

    answers: list[str] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)
    refused: int = 0
    slowest: float = 0.0


async def test_a_crash_of_the_database_costs_no_answer_and_no_feedback(pair: Pair) -> None:
    seen, over = [Seen(), Seen()], asyncio.Event()
    async with pair.clients() as clients, asyncio.TaskGroup() as group:
        rollout = (await clients[0].put(ROLLOUT, json=pair.rollout(1))).json()
        await until_answered_with(clients, rollout)
        for number, client in enumerate(clients):
            group.create_task(chat(client, seen[number], over))
            for who in range(2):
                group.create_task(give(client, f"{number}-{who}", seen[number], over))
        await until_more(seen, ANSWERS, 0, CONFIRMED)

        await asyncio.to_thread(pair.postgresql.crash)
        crashed = time.monotonic()
        await until_more(seen, ANSWERS, REFUSALS, 0)
        for client in clients:
            await check_away(client, pair.rollout(0, 1))
        await asyncio.sleep(crashed + AWAY_SECONDS - time.monotonic())
        await asyncio.to_thread(pair.postgresql.start)

        await until_more(seen, ANSWERS, 0, CONFIRMED)
        changed = await clients[1].put(ROLLOUT, json=pair.rollout(0, 0, 1))
        assert (changed.status_code, changed.json()["generation"]) == (200, rollout["generation"] + 1)
        await until_answered_with(clients, changed.json())
        over.set()
    check_feedback(pair, seen)
    await check_answers(pair, seen)
    assert len(Replicas(pair.database).living()) == 2


async def chat(client: httpx.AsyncClient, seen: Seen, over: asyncio.Event) -> None:
    """Ask until it is over, every other time for a stream; no answer may fail."""
    for number in count():
        if over.is_set():
            return
        answer = await client.post(CHAT, json={**QUESTION, "stream": bool(number % 2)})
        assert answer.status_code == 200, answer.text
        if number % 2:
            assert "[DONE]" in answer.text
        first = answer.text.partition("\n")[0].removeprefix("data: ")
        seen.answers.append(json.loads(first)["id"])
        await asyncio.sleep(0.005)


async def give(client: httpx.AsyncClient, who: str, seen: Seen, over: asyncio.Event) -> None:
    """Say something again and again; what has an idempotency key is sent until it is taken, as a client should."""
    completion = (await client.post(CHAT, json=QUESTION)).json()["id"]
    seen.answers.append(completion)
    for number in count():
        if over.is_set():
            return
        text = f"{who}-{number}"
        body = {"completion_id": completion, "key": "comment", "text": text, "annotator": {"id": who}}
        again = {"idempotency_key": text} if number % 2 else {}
        while not await taken(client, {**body, **again}, seen) and again:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.02)


async def taken(client: httpx.AsyncClient, body: dict[str, Any], seen: Seen) -> bool:
    began = time.monotonic()
    answer = await client.post(FEEDBACK, json=body)
    seen.slowest = max(seen.slowest, time.monotonic() - began)
    if answer.status_code == 201:
        seen.confirmed.append(body["text"])
        return True
    check_refused(answer)
    seen.refused += 1
    return False


async def until_more(seen: list[Seen], answers: int, refused: int, confirmed: int) -> None:
    """Both replicas have answered, refused and taken so much more."""
    before = [(len(one.answers), one.refused, len(one.confirmed)) for one in seen]

    async def more() -> bool:
        now = [(len(one.answers), one.refused, len(one.confirmed)) for one in seen]
        grown = [
            [after - earlier for earlier, after in zip(*pair, strict=True)] for pair in zip(before, now, strict=True)
        ]
        return all(a >= answers and r >= refused and c >= confirmed for a, r, c in grown)

    await until(more)


async def check_away(client: httpx.AsyncClient, rollout: dict[str, Any]) -> None:
    """Whoever wants to change or look something up is told at once that the database is away; the replica is well."""
    began = time.monotonic()
    check_refused(await client.put(ROLLOUT, json=rollout))
    check_refused(await client.post("/admin/adapters/acme/rollback"))
    check_refused(await client.delete("/admin/traffic", params={"conversation_id": "Jo"}))
    for path in ("/admin/audit", "/admin/keys", "/admin/reviews", FEEDBACK):
        check_refused(await client.get(path))
    assert time.monotonic() - began < LOCK_SECONDS
    assert (await client.get("/healthz")).status_code == 200
    assert (await client.get("/readyz")).json() == {"status": "ready"}


def check_refused(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable"), answer.text
    assert answer.headers["retry-after"] == "5"


def check_feedback(pair: Pair, seen: list[Seen]) -> None:
    """What got its 201 is there once; so is what nobody knows of, or it is not."""
    confirmed = [text for one in seen for text in one.confirmed]
    with reading(pair.database) as session:
        stored = Counter(session.scalars(select(FeedbackRow.text)))
    assert {text: stored[text] for text in confirmed} == dict.fromkeys(confirmed, 1)
    assert set(stored.values()) == {1}
    assert max(one.slowest for one in seen) < LOCK_SECONDS


async def check_answers(pair: Pair, seen: list[Seen]) -> None:
    """Answers that were given meanwhile waited in memory: every one has its row, and none was dropped."""
    answers = {completion for one in seen for completion in one.answers}

    async def written() -> bool:
        with reading(pair.database) as session:
            return answers <= set(session.scalars(select(AnswerRow.id)))

    await until(written)
    async with pair.clients() as clients:
        for client in clients:
            assert "polytone_traffic_dropped_total 0.0" in (await client.get("/metrics")).text
