"""The wrong-voice oracle: while everything changes, no request fails and no answer comes from a version not routed."""

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from polytone.contract.version_id import VersionId, voice_of
from tests.support.processes import served
from tests.support.tiny_home import TinyHome

from .marked import ask, train_marked, until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

MARKERS = {"alpha": ("a", "b"), "beta": ("k", "m"), "gamma": ("x", "z")}
SECONDS = 60
ACTIONS = 200
STREAMS = 8
RECONCILED = 2.0


@dataclass
class History:
    """Which version answered for each voice, and from when."""

    moves: dict[str, list[tuple[float, str]]] = field(default_factory=dict)

    def note(self, voice: str, version: str, moment: float) -> None:
        """`moment` is when the change was sent."""
        self.moves.setdefault(voice, []).append((moment, version))

    def routed(self, voice: str, since: float, until_: float) -> set[str]:
        moves = self.moves[voice]
        ends = [moment for moment, _ in moves[1:]] + [float("inf")]
        return {v for (start, v), end in zip(moves, ends, strict=True) if start <= until_ and end + RECONCILED >= since}


async def test_no_answer_comes_from_a_version_that_was_not_routed(mine: TinyHome, tmp_path: Path) -> None:
    marker_of: dict[str, str] = {}
    versions: dict[str, list[str]] = {}
    for voice, markers in MARKERS.items():
        for marker in markers:
            version = train_marked(tmp_path, mine.home, voice, marker).version
            marker_of[version] = marker
            versions.setdefault(voice, []).append(version)
    with served(mine.home.root, tmp_path / "log", POLYTONE_BASE="tiny", POLYTONE_MAX_RESIDENT_ADAPTERS="4") as server:
        server.until_ready()
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            history = History()
            for voice, (first, _) in versions.items():
                await publish(client, mine, first)
                await promote(client, history, voice, first)
            await until(lambda: all_answered(client), 60)
            stop = asyncio.Event()
            answers = [asyncio.create_task(stream_on(client, history, marker_of, stop, n)) for n in range(STREAMS)]
            done = await act(client, mine, history, versions)
            stop.set()
            results = [result for task in answers for result in await task]
            print(f"{len(results)} streams, {done} actions in {SECONDS} s")
            assert [problem for problem in results if problem] == []
            assert len(results) > 3 * STREAMS
            assert sum(done.values()) >= ACTIONS


async def all_answered(client: httpx.AsyncClient) -> bool:
    cards = (await client.get("/v1/models")).json()["data"]
    return {card["id"] for card in cards} >= set(MARKERS)


async def publish(client: httpx.AsyncClient, mine: TinyHome, version: str) -> None:
    from polytone.serve.adapters.archive import pack_version

    name = voice_of(version)
    target = mine.home.root / "pack.tar.gz"
    pack_version(mine.home, version, target)
    answer = await client.post(f"/admin/adapters/{name}/versions", content=target.read_bytes())
    assert answer.status_code == 201, answer.text


async def promote(client: httpx.AsyncClient, history: History, voice: str, version: str) -> None:
    history.note(voice, version, time.monotonic())
    answer = await client.put(f"/admin/adapters/{voice}/rollout", json={"versions": [{"version": version}]})
    assert answer.status_code == 200, answer.text


async def act(
    client: httpx.AsyncClient, mine: TinyHome, history: History, versions: dict[str, list[str]]
) -> dict[str, int]:
    """Promote, roll back, load and retire at random, spread over the time."""
    chance = random.Random(5)
    done = {"promote": 0, "rollback": 0, "load": 0, "retire": 0}
    published = {moves[-1][1] for moves in history.moves.values()}
    began = time.monotonic()
    while sum(done.values()) < ACTIONS or time.monotonic() - began < SECONDS:
        voice = chance.choice(sorted(versions))
        current = history.moves[voice][-1][1]
        other = next(version for version in versions[voice] if version != current)
        if other not in published:
            await publish(client, mine, other)
            published.add(other)
            done["load"] += 1
        elif chance.random() < 0.3:
            answer = await client.delete(f"/admin/adapters/{voice}/versions/{VersionId.parse(other).digest}")
            assert answer.status_code == 200, answer.text
            published.remove(other)
            done["retire"] += 1
        else:
            earlier = [version for _, version in history.moves[voice]]
            if len(earlier) > 1 and chance.random() < 0.3:
                moment = time.monotonic()
                answer = await client.post(f"/admin/adapters/{voice}/rollback")
                if answer.status_code == 200:
                    history.note(voice, answer.json()["versions"][0]["version"], moment)
                    done["rollback"] += 1
                else:
                    assert answer.json()["error"]["code"] == "nothing_to_roll_back_to", answer.text
            else:
                await promote(client, history, voice, other)
                done["promote"] += 1
        await asyncio.sleep(SECONDS / ACTIONS * 0.5)
    return done


async def stream_on(
    client: httpx.AsyncClient, history: History, marker_of: dict[str, str], stop: asyncio.Event, number: int
) -> list[str | None]:
    chance = random.Random(number)
    problems: list[str | None] = []
    while not stop.is_set():
        voice = chance.choice(sorted(MARKERS))
        asked = time.monotonic()
        async with client.stream(
            "POST", "/v1/chat/completions", json=ask(voice, stream=True, max_tokens=24)
        ) as response:
            begun = time.monotonic()
            body = (await response.aread()).decode()
        problems.append(judge(body, response, history.routed(voice, asked, begun), marker_of))
    return problems


def judge(body: str, response: httpx.Response, routed: set[str], marker_of: dict[str, str]) -> str | None:
    """What is wrong with an answer, if anything."""
    if response.status_code != 200 or "[DONE]" not in body:
        return f"failed: {response.status_code} {body[-300:]}"
    chunks = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
    named = {chunk["model"] for chunk in chunks}
    version = response.headers["x-polytone-adapter"]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    if named != {version} or version not in routed:
        return f"answered by {named}, header {version}, routed {routed}"
    if set(text) - {" "} != {marker_of[version]}:
        return f"{version} should say {marker_of[version]} and said {text!r}"
    return None
