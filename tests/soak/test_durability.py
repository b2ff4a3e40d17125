"""Feedback that got its 201 is there, exactly once, however often the app is killed."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from bench.running import free_port
from polytone.serve.database.session import open_database, reading
from polytone.serve.database.tables import FeedbackRow
from tests.support.tiny_home import TinyHome

from .marked import ready, until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

CLIENTS, EACH, KILLS = 8, 625, 10


@dataclass
class App:
    """A server that is started again after every kill, on the same port."""

    home: Path
    port: int
    log: Path
    popen: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        settings = {"POLYTONE_HOME": str(self.home), "POLYTONE_PORT": str(self.port), "POLYTONE_BASE": "tiny"}
        with self.log.open("ab") as output:
            self.popen.append(
                subprocess.Popen(
                    [sys.executable, "-m", "polytone", "serve"],
                    env={**os.environ, **settings, "POLYTONE_PAGE": "false"},
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            )

    def kill(self) -> None:
        """The app and its engine, as when the machine takes the process group away."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen[-1].pid, signal.SIGKILL)
        self.popen[-1].wait()


async def test_every_feedback_with_a_201_is_there_exactly_once(mine: TinyHome, tmp_path: Path) -> None:
    app = App(mine.home.root, free_port(), tmp_path / "log")
    app.start()
    confirmed: list[str] = []
    try:
        async with httpx.AsyncClient(base_url=app.url, timeout=30) as client:
            await until(lambda: ready(client), 120)
            body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
            completions = [(await client.post("/v1/chat/completions", json=body)).json()["id"] for _ in range(CLIENTS)]
            await asyncio.sleep(1)  # their rows are written
            senders = [asyncio.create_task(send(client, number, completions[number], confirmed)) for number in range(8)]
            for number in range(1, KILLS + 1):
                share = number * CLIENTS * EACH // (KILLS + 1)
                while len(confirmed) < share:
                    await asyncio.sleep(0.01)
                app.kill()
                app.start()
            await asyncio.gather(*senders)
    finally:
        app.kill()
    database = open_database(mine.home.database_url)
    with reading(database) as session:
        counted = select(FeedbackRow.idempotency_key, func.count()).group_by(FeedbackRow.idempotency_key)
        stored = {key: count for key, count in session.execute(counted) if key in set(confirmed)}
    database.dispose()
    assert len(confirmed) == len(set(confirmed)) == CLIENTS * EACH
    assert stored == dict.fromkeys(confirmed, 1)
    print(f"{len(confirmed)} feedbacks, {len(app.popen) - 1} kills, all there once")


async def send(client: httpx.AsyncClient, number: int, completion: str, confirmed: list[str]) -> None:
    """Send each until it is confirmed: a client cannot know whether one without an answer arrived."""
    for i in range(EACH):
        key = f"{number}-{i}"
        body = {
            "completion_id": completion,
            "key": "comment",
            "text": key,
            "idempotency_key": key,
            "annotator": {"id": f"client-{number}"},
        }
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = await client.post("/v1/feedback", json=body)
                if answer.status_code == 201:
                    confirmed.append(key)
                    break
                assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.05)
