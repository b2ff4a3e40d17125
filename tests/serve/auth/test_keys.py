"""Keys: what each kind may do, how they end, and that no route stands open beside them."""

import asyncio
import re
from datetime import timedelta
from pathlib import Path

import pytest

from polytone.contract.errors import ConflictError, DeniedError
from polytone.contract.home import Home
from polytone.serve.auth.keys import Keyring, KeyStore, Kind
from polytone.serve.database.audit import read_audit
from polytone.serve.database.session import now, open_database
from tests.support.serving import Server, database_url, eventually, serving

pytestmark = pytest.mark.both_databases

OPEN = {("GET", "/healthz"), ("GET", "/readyz")}
INFERENCE = {
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/v1/feedback"),
    ("POST", "/v1/feedback"),
    ("GET", "/v1/conversations"),
    ("POST", "/v1/conversations"),
    ("GET", "/v1/conversations/export"),
    ("GET", "/v1/conversations/{conversation_id}"),
    ("DELETE", "/v1/conversations/{conversation_id}"),
    ("POST", "/v1/conversations/{conversation_id}/turns"),
}


def every_route(server: Server) -> list[tuple[str, str]]:
    return [(method, getattr(r, "path", "")) for r in server.app.routes for method in getattr(r, "methods", [])]


async def test_every_route_refuses_no_key_a_wrong_key_and_a_key_of_the_other_kind(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        inference, admin = server.key(Kind.INFERENCE), server.key(Kind.ADMIN)
        wrong = {"authorization": f"Bearer pt-adm-{'0' * 12}-{'x' * 43}"}
        for method, path in every_route(server):
            if (method, path) in OPEN:
                continue
            other = admin if (method, path) in INFERENCE else inference
            concrete = re.sub(r"\{\w+\}", "acme", path)
            for headers, status, code in (
                ({}, 401, "key_missing"),
                ({"authorization": "Basic abc"}, 401, "key_missing"),
                ({"authorization": "Bearer sk-something"}, 401, "key_invalid"),
                (wrong, 401, "key_invalid"),
                (other, 403, "key_of_other_kind"),
            ):
                response = await server.client.request(method, concrete, headers=headers)
                assert (response.status_code, response.json()["error"]["code"]) == (status, code), (method, path)
                assert ("www-authenticate" in response.headers) == (status == 401)


async def test_a_key_bound_to_voices_sees_and_asks_only_those(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        version = await server.voice("acme")
        await server.voice("zest", seed=1)
        bound = server.key(Kind.INFERENCE, adapters=frozenset({"acme"}))
        for model, status in (("acme", 200), (version, 200), ("zest", 403), ("tiny", 403), ("nobody", 403)):
            assert (await server.chat(model, headers=bound)).status_code == status, model
        listed = (await server.client.get("/v1/models", headers=bound)).json()["data"]
        assert [card["id"] for card in listed] == ["acme"]


async def test_a_revoked_and_an_expired_key_are_refused_and_the_server_stays_closed(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        key, admin = server.key(Kind.INFERENCE, "bot"), server.key(Kind.ADMIN)
        assert (await server.chat("tiny", headers=key)).status_code == 200
        assert (await server.client.delete("/admin/keys/bot", headers=admin)).json()["revoked_at"]
        assert (await server.chat("tiny", headers=key)).json()["error"]["code"] == "key_invalid"
        old = server.key(Kind.INFERENCE, "old", expires_at=now() - timedelta(seconds=1))
        assert (await server.chat("tiny", headers=old)).json()["error"]["code"] == "key_invalid"
        await server.client.delete("/admin/keys/admin-key", headers=admin)
        assert (await server.chat("tiny")).status_code == 401


async def test_a_key_is_revoked_once_whoever_else_does_it_at_the_time(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        keys = server.services.keys
        for name in (f"bot-{number}" for number in range(5)):
            keys.create(name, Kind.INFERENCE, "test")
            await asyncio.gather(*(asyncio.to_thread(keys.revoke, name, "test") for _ in range(5)))
            assert [entry.action for entry in read_audit(server.services.database, 10, name)] == [
                "revoke_key",
                "create_key",
            ]


async def test_a_key_made_elsewhere_counts_within_a_moment(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert (await server.chat("tiny")).status_code == 200
        server.services.keys.create("bot", Kind.INFERENCE, "the command line")
        await eventually(lambda: server.services.keyring.required)
        assert (await server.chat("tiny")).status_code == 401


async def test_keys_are_made_over_http_shown_once_and_stored_hashed(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        made = await server.client.post("/admin/keys", json={"name": "ops", "kind": "admin", "days": 7})
        text = made.json()["key"]
        assert (made.status_code, made.json()["kind"]) == (201, "admin")
        headers = {"authorization": f"Bearer {text}"}
        listed = await server.client.get("/admin/keys", headers=headers)
        assert text not in listed.text
        assert [key["name"] for key in listed.json()["keys"]] == ["ops"]
        again = await server.client.post("/admin/keys", json={"name": "ops", "kind": "admin"}, headers=headers)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "key_name_taken")
        audit = await server.client.get("/admin/audit", headers=headers)
        assert text not in audit.text
    assert all(text[-43:].encode() not in content for content in files_of(tmp_path))


def test_a_revoked_key_keeps_its_name_and_the_message_says_why(tmp_path: Path) -> None:
    database = open_database(database_url(Home(tmp_path)))
    store = KeyStore(database)
    store.create("bot", Kind.INFERENCE, "test")
    with pytest.raises(ConflictError, match=r"^There is a key bot\. Choose another name, such as bot-2\.$"):
        store.create("bot", Kind.INFERENCE, "test")
    store.revoke("bot", "test")
    with pytest.raises(ConflictError, match="was revoked, and its name stays taken because its conversations"):
        store.create("bot", Kind.INFERENCE, "test")
    database.dispose()


def files_of(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.glob("polytone.db*")]


def test_the_keyring_tells_kinds_apart(tmp_path: Path) -> None:
    database = open_database(database_url(Home(tmp_path)))
    store = KeyStore(database)
    assert Keyring(store.with_hashes()).authenticate(None, Kind.ADMIN) is None
    _, text = store.create("ops", Kind.ADMIN, "test")
    with pytest.raises(ConflictError):
        store.create("ops", Kind.INFERENCE, "test")
    ring = Keyring(store.with_hashes())
    key = ring.authenticate(f"Bearer {text}", Kind.ADMIN)
    assert key is not None
    assert key.name == "ops"
    for header in (None, "", "Bearer", f"Bearer {text}x", f"Bearer {text[:-1]}", text):
        with pytest.raises(DeniedError):
            ring.authenticate(header, Kind.ADMIN)
    database.dispose()
