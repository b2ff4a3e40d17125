"""The engine dies, hangs, refuses to start, or the database goes away: the app stays up and says so."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from polytone.serve.adapters.registry import Desired
from polytone.serve.engine.base import EngineError
from tests.support.serving import eventually, serving


async def test_an_engine_that_hangs_while_busy_is_rebuilt_with_every_voice(tmp_path: Path) -> None:
    async with serving(tmp_path, step_seconds=0.01, hang_seconds=0.2) as server:
        version = await server.voice("acme")
        server.engine.frozen.set()
        answer = asyncio.create_task(server.chat("acme", stream=True))
        await eventually(lambda: server.engine.starts == 2)
        assert "engine_unavailable" in (await answer).text
        await eventually(lambda: server.supervisor.ready() and server.answers("acme") == version)
        assert (await server.chat("acme")).json()["model"] == version


async def test_an_engine_that_forgets_those_who_wait_leaves_nobody_waiting(tmp_path: Path) -> None:
    """vLLM's client, shut down while its engine hangs, never wakes those who wait for a token."""
    async with serving(tmp_path, step_seconds=0.01, hang_seconds=0.2) as server:
        server.engine.deaf = True
        server.engine.frozen.set()
        for streamed in (True, False):
            answer = asyncio.create_task(server.chat("tiny", stream=streamed))
            assert "engine_unavailable" in (await asyncio.wait_for(answer, 5)).text
            await eventually(server.supervisor.ready)
            server.engine.frozen.set()


async def test_an_idle_engine_is_not_taken_for_a_hanging_one(tmp_path: Path) -> None:
    async with serving(tmp_path, hang_seconds=0.05) as server:
        await asyncio.sleep(0.3)
        assert server.engine.starts == 1


async def test_a_failed_start_is_tried_again_while_admin_reads_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as server:
        version = await server.voice("acme")
        good, tries = server.engine.start, 0

        async def start() -> None:
            nonlocal tries
            tries += 1
            if tries < 2:
                raise EngineError("no memory", code="engine_failed", status=503)
            await good()

        monkeypatch.setattr(server.engine, "start", start)
        server.engine.up = False
        await eventually(lambda: tries == 1)
        refused = await server.chat("acme")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        assert refused.headers["retry-after"]
        assert (await server.client.get("/readyz")).status_code == 503
        assert (await server.client.get("/healthz")).status_code == 200
        assert (await server.client.get("/admin/adapters")).json()["adapters"][0]["name"] == "acme"
        await eventually(lambda: server.supervisor.ready() and server.answers("acme") == version, seconds=10)


async def test_chat_goes_on_from_memory_while_the_database_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        good = server.registry.desired
        gone = True

        def desired() -> Desired:
            if gone:
                raise OperationalError("select", {}, OSError("gone"))
            return good()

        monkeypatch.setattr(server.registry, "desired", desired)
        await eventually(lambda: server.services.status.problem is not None)
        assert (await server.chat("acme")).status_code == 200
        refused = await server.client.get("/admin/adapters")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "database_unavailable")
        gone = False
        await eventually(lambda: server.services.status.problem is None)


async def test_requests_that_wait_for_a_turn_are_told_when_the_engine_dies(tmp_path: Path) -> None:
    async with serving(tmp_path, step_seconds=0.2, max_resident=1, max_batch=1) as server:
        await server.voice("acme", seed=1)
        other = server.add("zest", seed=2)
        await eventually(lambda: server.state(other) == "published")
        answering = asyncio.create_task(server.chat("acme", stream=True))
        await eventually(lambda: server.engine.running == 1)
        waiting = asyncio.create_task(server.chat(other))
        await eventually(lambda: server.services.adapters.waiting == 1)
        server.engine.up = False
        refused = await waiting
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        await answering
        assert not server.services.inflight


async def test_a_mistake_of_our_own_in_one_step_does_not_end_the_supervision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as server:
        good, bad = server.services.adapters.reconcile, True

        def reconcile(desired: Desired) -> None:
            if bad:
                raise ZeroDivisionError
            good(desired)

        monkeypatch.setattr(server.services.adapters, "reconcile", reconcile)
        await eventually(lambda: "ZeroDivisionError" in (server.services.status.problem or ""))
        assert (await server.chat("tiny")).status_code == 200
        bad = False
        await server.voice("acme")
