"""Opening the database, waiting for it, and what no database keeps."""

import asyncio
import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from polytone.contract.errors import InputError, UnavailableError
from polytone.contract.home import Home
from polytone.serve.auth.keys import Kind
from polytone.serve.database import session as opening
from polytone.serve.database.session import one_at_a_time, open_database, reading, writing
from polytone.serve.database.tables import AnswerRow, ReplicaRow
from tests.support.serving import database_url, eventually, serving

NUL, HALF = "a\0b", "a\ud800b"
URLS = (
    ("GET", "/v1/feedback?adapter={}"),
    ("GET", "/v1/feedback?version={}"),
    ("GET", "/v1/conversations?search={}"),
    ("GET", "/v1/conversations/{}"),
    ("GET", "/v1/models/{}"),
    ("GET", "/admin/adapters/{}"),
    ("DELETE", "/admin/adapters/{}"),
    ("POST", "/admin/adapters/{}/rollback"),
    ("GET", "/admin/adapters/acme/versions/{}"),
    ("DELETE", "/admin/adapters/acme/versions/{}"),
    ("GET", "/admin/audit?target={}"),
    ("GET", "/admin/drift?version={}"),
    ("POST", "/admin/drift/{}/tone/acknowledge"),
    ("POST", "/admin/drift/acme/{}/acknowledge"),
    ("GET", "/admin/feedback/export?format=sft&adapter={}"),
    ("DELETE", "/admin/traffic?conversation_id={}"),
    ("DELETE", "/admin/keys/{}"),
)


def bodies(completion: str, odd: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Requests that are good but for one odd text, wherever a text can be given."""
    said = {"completion_id": completion, "key": "comment", "text": "x"}
    for change in (
        {"completion_id": odd},
        {"text": odd},
        {"annotator": {"id": odd}},
        {"idempotency_key": odd},
        {"supersedes": odd},
    ):
        yield "POST", "/v1/feedback", {**said, **change}
    yield "POST", "/v1/feedback", {"conversation_id": odd, "key": "comment", "text": "x"}
    yield "POST", "/v1/feedback", {"pair": {"a": completion, "b": odd}, "key": "preference", "value": "a"}
    yield "POST", "/v1/feedback", {"key": "retract", "supersedes": odd}
    yield "POST", "/v1/conversations", {"title": odd}
    yield "POST", "/admin/reviews/next", {"reviewer": odd}
    yield "POST", "/admin/reviews/next", {"reviewer": "ann", "adapter": odd}
    yield "POST", f"/admin/reviews/{completion}", {"reviewer": odd, "decision": "accept"}
    yield "POST", f"/admin/reviews/{completion}", {"reviewer": "ann", "decision": "edit", "text": odd}
    yield "PUT", "/admin/adapters/acme/rollout", {"versions": [{"version": odd}]}
    yield "POST", "/admin/keys", {"name": odd, "kind": "admin"}


@pytest.mark.both_databases
async def test_text_that_no_database_keeps_is_refused_wherever_it_comes_from(tmp_path: Path) -> None:
    """On PostgreSQL `DELETE /admin/traffic` with a NUL once said that the database was gone; SQLite failed at halves of
    surrogate pairs, and kept a NUL."""
    async with serving(tmp_path) as server:
        await server.voice("acme")
        completion = (await server.chat("acme")).json()["id"]
        given = {"completion_id": completion, "key": "thumb", "value": "down"}
        assert (await server.client.post("/v1/feedback", json=given)).status_code == 201
        await server.services.recorder.flush()
        for method, path in URLS:
            answer = await server.client.request(method, path.format("a%00b"))
            assert answer.status_code in (400, 404), (method, path, answer.text)
        for odd in (NUL, HALF):
            for method, path, body in bodies(completion, odd):
                headers = {"content-type": "application/json"}
                answer = await server.client.request(method, path, content=json.dumps(body), headers=headers)
                assert answer.status_code in (400, 404), (method, path, body, answer.text)
                assert answer.json()["error"]["code"] not in ("internal_error", "database_unavailable")
        assert [one["key"] for one in (await server.client.get("/v1/feedback")).json()["feedback"]] == ["thumb"]


@pytest.mark.both_databases
async def test_limits_that_no_column_holds_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        body = {"name": "bot", "kind": "inference"}
        for limit in (2**31, 10**30):
            refused = await server.client.post("/admin/keys", json={**body, "tokens_per_minute": limit})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tokens_per_minute")
        made = await server.client.post("/admin/keys", json={**body, "tokens_per_minute": 2**31 - 1})
        assert made.status_code == 201
        with pytest.raises(InputError, match="concurrent_requests"):
            server.services.keys.create("other", Kind.INFERENCE, "test", concurrent_requests=0)


@pytest.mark.both_databases
async def test_who_waits_too_long_for_another_is_told_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "LOCK_SECONDS", 1)
    async with serving(tmp_path) as server:
        version = server.add("acme")
        path, body = "/admin/adapters/acme/rollout", {"versions": [{"version": version}]}
        with writing(server.services.database) as session:
            session.connection()  # SQLite's lock
            one_at_a_time(session, "voice acme")  # PostgreSQL's
            refused = await server.client.put(path, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "database_unavailable")
        assert (await server.client.put(path, json=body)).json()["generation"] == 1


@pytest.mark.timeout(60)
def test_a_database_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(opening.TIMEOUTS, "connect_timeout", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(UnavailableError, match=rf"127\.0\.0\.1:{port}/polytone .* cannot be opened") as caught:
            open_database(f"postgresql://ann:secret@127.0.0.1:{port}/polytone")
    assert caught.value.code == "database_unavailable"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["postgres://ann@db/polytone", "postgresql+nothing://db/polytone", "sqlite://", "polytone.db"]
)
def test_a_url_that_names_no_database_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="POLYTONE_DATABASE_URL") as caught:
        open_database(url)
    assert caught.value.code == "settings_invalid"


@pytest.mark.both_databases
async def test_answers_wait_for_a_connection_that_is_not_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While all connections were in use answers were once taken for ones that the database refused, and dropped."""
    async with serving(tmp_path) as server:
        await server.voice("acme")
        good, busy, tries = server.services.recorder._insert, True, 0

        def insert(rows: Any) -> None:
            nonlocal tries
            tries += 1
            if busy:
                raise PoolTimeoutError
            good(rows)

        monkeypatch.setattr(server.services.recorder, "_insert", insert)
        ids = {(await server.chat("acme")).json()["id"] for _ in range(3)}
        await eventually(lambda: tries > 0)
        busy = False
        await server.services.recorder.flush()
        with reading(server.services.database) as session:
            assert set(session.scalars(select(AnswerRow.id))) == ids
        assert "polytone_traffic_dropped_total 0.0" in server.services.metrics.render().decode()


@pytest.mark.both_databases
async def test_a_block_reads_what_was_there_at_one_moment(tmp_path: Path) -> None:
    database = open_database(database_url(Home(tmp_path)))
    async with serving(tmp_path) as server:
        with reading(database) as session:
            before = session.scalars(select(AnswerRow.id)).all()
            await server.chat("tiny")
            await server.services.recorder.flush()
            assert session.scalars(select(AnswerRow.id)).all() == before == []
        with reading(database) as session:
            assert len(session.scalars(select(AnswerRow.id)).all()) == 1
    await asyncio.to_thread(database.dispose)


@pytest.mark.both_databases
def test_a_moment_is_stored_in_utc_and_read_with_its_zone(tmp_path: Path) -> None:
    """SQLite keeps no time zone: a moment from elsewhere was once stored as its own clock showed it."""
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    database = open_database(database_url(Home(tmp_path)))
    with writing(database) as session:
        session.add(ReplicaRow(name="east", seen_at=noon.astimezone(timezone(timedelta(hours=5)))))
    with reading(database) as session:
        seen_at = session.scalars(select(ReplicaRow.seen_at)).one()
        assert (seen_at, seen_at.utcoffset()) == (noon, timedelta(0))
        assert session.scalars(select(ReplicaRow.name).where(ReplicaRow.seen_at <= noon)).all() == ["east"]
    database.dispose()
