"""The rehearsal: a server under traffic is saved, killed and lost with its home; all but its last seconds come back."""

import asyncio
import contextlib
import json
import shutil
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import select

from bench.running import ServerProcess
from polytone.serve.adapters.registry import Registry
from polytone.serve.adapters.rollout import Part
from polytone.serve.auth.keys import KeyStore, Kind
from polytone.serve.database.session import reading
from polytone.serve.database.tables import AnswerRow, FeedbackRow
from tests.serve.backup.test_backup import Place, elsewhere
from tests.support.processes import polytone, served
from tests.support.serving import database_url
from tests.support.tiny_home import TinyHome

from .marked import ask, restamped, until

__all__ = ["elsewhere"]

pytestmark = [pytest.mark.soak, pytest.mark.both_databases, pytest.mark.timeout(600)]

CLIENTS = 2
BEFORE, AFTER = 60, 60
READING_SECONDS = 0.1
DECIDED = ("versions", "rollouts", "keys", "audit")
SETTINGS = {"POLYTONE_BASE": "tiny", "POLYTONE_PAGE": "false"}


@dataclass
class TrafficRecorder:
    """People who ask, and say what they think of the answer."""

    client: httpx.AsyncClient
    voices: list[str]
    answered: list[str] = field(default_factory=list)
    said: dict[str, datetime] = field(default_factory=dict)  # feedback id -> when it had been acknowledged

    async def run(self, number: int) -> None:
        for turn in range(100_000):
            with contextlib.suppress(httpx.TransportError):
                body = ask(self.voices[turn % len(self.voices)], max_tokens=8, user=f"person-{number}-{turn}")
                answer = await self.client.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
                completion = answer.json()["id"]
                self.answered.append(completion)
                thumb = {"completion_id": completion, "key": "thumb", "value": "down" if turn % 3 == 0 else "up"}
                given = await self.client.post("/v1/feedback", json=thumb)
                assert given.status_code == 201, given.text
                self.said[given.json()["id"]] = datetime.now(UTC)
            await asyncio.sleep(READING_SECONDS)

    async def until_said(self, count: int) -> None:
        while len(self.said) < count:
            await asyncio.sleep(0.05)


async def test_everything_but_the_last_seconds_of_traffic_is_back(
    mine: TinyHome, elsewhere: Place, tmp_path: Path, kind_of_database: str
) -> None:
    here, folder = Place(mine.home, database_url(mine.home)), tmp_path / "backup"
    keys = prepare(here, mine)
    with served(mine.home.root, tmp_path / "log", **SETTINGS) as server:
        server.until_ready()
        async with httpx.AsyncClient(base_url=server.url, headers=keys["inference"], timeout=60) as client:
            spoken = {voice: await answer_of(client, voice) for voice in mine.voices}
            traffic = TrafficRecorder(client, list(mine.voices))
            people = [asyncio.create_task(traffic.run(number)) for number in range(CLIENTS)]
            await asyncio.wait(
                {*people, asyncio.create_task(traffic.until_said(BEFORE))}, return_when="FIRST_COMPLETED"
            )
            answered = list(traffic.answered)
            await until(lambda: all_written(here, answered), 10)
            decided = {name: here.rows()[name] for name in DECIDED}
            began = time.monotonic()
            done = await asyncio.to_thread(polytone, "backup", str(folder), "--json", home=mine.home.root)
            assert done.returncode == 0, done.stderr
            print(f"\n{kind_of_database}: saved beside traffic in {time.monotonic() - began:.1f} s")
            wanted = len(traffic.said) + AFTER
            await asyncio.wait(
                {*people, asyncio.create_task(traffic.until_said(wanted))}, return_when="FIRST_COMPLETED"
            )
            killed = kill_all(server)
            for person in people:
                person.cancel()
            for ended in await asyncio.gather(*people, return_exceptions=True):
                assert isinstance(ended, asyncio.CancelledError), ended
    shutil.rmtree(mine.home.root)

    created = datetime.fromisoformat(json.loads(done.stdout)["created"])
    began = time.monotonic()
    into = {"POLYTONE_DATABASE_URL": elsewhere.url}
    done = polytone("restore", str(folder), "--json", home=elsewhere.home.root, **into)
    assert done.returncode == 0, done.stdout + done.stderr
    restored = time.monotonic() - began
    assert {name: elsewhere.rows()[name] for name in DECIDED} == decided
    with served(elsewhere.home.root, tmp_path / "log-again", **SETTINGS, **into) as server:
        server.until_ready()
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            print(f"restored in {restored:.1f} s, answering {time.monotonic() - began:.1f} s after the restore began")
            refused = await client.post("/v1/chat/completions", json=ask(next(iter(spoken))))
            assert refused.json()["error"]["code"] == "key_missing"
            assert (await client.get("/admin/adapters", headers=keys["admin"])).status_code == 200
            client.headers.update(keys["inference"])
            assert {voice: await answer_of(client, voice) for voice in spoken} == spoken
    check_feedback(elsewhere, traffic, answered, created)
    gone = {name: when for name, when in traffic.said.items() if when > created and name not in said_in(elsewhere)}
    print(
        f"gone: the {(killed - created).total_seconds():.1f} s of traffic between backup and kill "
        f"({len(gone)} of {len(traffic.said)} feedbacks), and nothing else"
    )


def prepare(here: Place, mine: TinyHome) -> dict[str, dict[str, str]]:
    """Two voices with a past, one of them shared by two versions; returns the headers of a key of each kind."""
    with here.opened() as database:
        registry, store = Registry(database), KeyStore(database)
        for voice, manifest in mine.voices.items():
            second = restamped(mine.home, manifest, 1).version
            for version in (second, manifest.version):
                registry.publish(version, "rehearsal")
                registry.promote(voice, version, "rehearsal")
            if voice == "acme":
                registry.roll_out(voice, [Part(manifest.version, 90), Part(second, 10)], "rehearsal")
        texts = {kind: store.create(f"{kind}-key", kind, "rehearsal")[1] for kind in Kind}
    return {kind.value: {"authorization": f"Bearer {text}"} for kind, text in texts.items()}


async def answer_of(client: httpx.AsyncClient, voice: str) -> dict[str, Any]:
    """Who answers a conversation, and what it says greedily."""
    answer = await client.post("/v1/chat/completions", json=ask(voice, max_tokens=12, user="rehearsal"))
    assert answer.status_code == 200, answer.text
    return {"version": answer.json()["model"], "text": answer.json()["choices"][0]["message"]["content"]}


async def all_written(place: Place, answered: list[str]) -> bool:
    """Rows are written a moment after their answers."""
    return set(answered) <= answers_in(place)


def kill_all(server: ServerProcess) -> datetime:
    """The app and its engine at once, as when the machine is gone; returns when."""
    processes = server.children()
    server.popen.kill()
    moment = datetime.now(UTC)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    server.popen.wait(20)
    assert not psutil.wait_procs(processes, timeout=20)[1]
    return moment


def check_feedback(place: Place, traffic: TrafficRecorder, answered: list[str], created: datetime) -> None:
    said = said_in(place)
    assert len(said) == len(set(said))
    lost = {name: when for name, when in traffic.said.items() if name not in set(said)}
    assert lost, "the kill came before anything was said after the backup"
    assert all(when > created for when in lost.values()), lost
    assert set(answered) <= answers_in(place)
    assert sum(when <= created for when in traffic.said.values()) >= BEFORE


def said_in(place: Place) -> list[str]:
    with place.opened() as database, reading(database) as session:
        return list(session.scalars(select(FeedbackRow.id).order_by(FeedbackRow.number)))


def answers_in(place: Place) -> set[str]:
    with place.opened() as database, reading(database) as session:
        return set(session.scalars(select(AnswerRow.id)))
