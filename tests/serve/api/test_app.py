"""The HTTP app over the double: routing, voices coming and going, errors in OpenAI's envelope."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from polytone.cli.wait import wait_until_routed
from polytone.contract.errors import CheckError, InputError, NotFoundError
from polytone.contract.home import Home
from polytone.contract.manifest import Fingerprint, Sampling
from polytone.serve.adapters.replicas import Replicas
from polytone.serve.adapters.rollout import Part, Rollout
from polytone.serve.database.session import open_database
from tests.support.adapters import make_version
from tests.support.serving import HELLO, Server, database_url, eventually, serving


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path) as running_server:
        yield running_server


async def test_only_the_routes_we_mean_to_offer_exist(server: Server) -> None:
    routes = {
        (method, getattr(route, "path", "")) for route in server.app.routes for method in getattr(route, "methods", [])
    }
    assert routes == {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{model}"),
        ("GET", "/admin/adapters"),
        ("GET", "/admin/adapters/{name}"),
        ("DELETE", "/admin/adapters/{name}"),
        ("POST", "/admin/adapters/{name}/versions"),
        ("GET", "/admin/adapters/{name}/versions/{digest}"),
        ("DELETE", "/admin/adapters/{name}/versions/{digest}"),
        ("PUT", "/admin/adapters/{name}/rollout"),
        ("POST", "/admin/adapters/{name}/rollback"),
        ("GET", "/v1/feedback"),
        ("POST", "/v1/feedback"),
        ("GET", "/v1/conversations"),
        ("POST", "/v1/conversations"),
        ("GET", "/v1/conversations/export"),
        ("GET", "/v1/conversations/{conversation_id}"),
        ("DELETE", "/v1/conversations/{conversation_id}"),
        ("POST", "/v1/conversations/{conversation_id}/turns"),
        ("GET", "/admin/reviews"),
        ("POST", "/admin/reviews/next"),
        ("POST", "/admin/reviews/{completion_id}"),
        ("GET", "/admin/feedback/export"),
        ("GET", "/admin/drift"),
        ("POST", "/admin/drift/{version}/{signal}/acknowledge"),
        ("GET", "/admin/activity"),
        ("DELETE", "/admin/traffic"),
        ("POST", "/admin/traffic/find"),
        ("GET", "/admin/audit"),
        ("GET", "/admin/keys"),
        ("POST", "/admin/keys"),
        ("DELETE", "/admin/keys/{name}"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
    }


async def test_base_alias_and_pinned_version_answer_under_their_exact_name(server: Server) -> None:
    version = await server.voice("acme")
    for model, exact in (("tiny", "tiny"), ("acme", version), (version, version)):
        response = await server.chat(model)
        assert response.status_code == 200
        assert response.json()["model"] == exact
        assert response.headers["x-polytone-adapter"] == exact


async def test_models_lists_base_and_aliases_with_what_they_resolve_to(server: Server) -> None:
    version = await server.voice("acme", system_prompt="Be brief.", sampling=Sampling(temperature=0.2))
    cards = (await server.client.get("/v1/models")).json()["data"]
    assert [(card["id"], card["parent"], card["version"]) for card in cards] == [
        ("tiny", None, "tiny"),
        ("acme", "tiny", version),
    ]
    assert cards[1]["system_prompt"] == "Be brief."
    assert (await server.client.get("/v1/models/acme")).json() == cards[1]


async def test_a_voices_prompt_and_sampling_apply_only_where_the_request_gives_none(server: Server) -> None:
    version = server.add("acme", system_prompt="Be brief.", sampling=Sampling(temperature=0.2, max_tokens=50))
    await server.until_ready(version)
    await server.chat(version)
    assert server.engine.requests[-1]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (server.engine.requests[-1]["temperature"], server.engine.requests[-1]["max_tokens"]) == (0.2, 50)
    own = [{"role": "system", "content": "Sing."}, *HELLO]
    await server.chat(version, messages=own, temperature=0.9, max_completion_tokens=7)
    assert server.engine.requests[-1]["messages"] == own
    assert server.engine.requests[-1]["temperature"] == 0.9
    assert "max_tokens" not in server.engine.requests[-1]


async def test_streams_name_the_version_in_every_chunk(server: Server) -> None:
    version = server.add("acme")
    await server.until_ready(version)
    response = await server.chat(version, stream=True)
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    assert {json.loads(event)["model"] for event in events[:-1]} == {version}


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{", 400, "invalid_json", None),
        (b"[]", 400, "invalid_json", None),
        (b"[" * 100_000, 400, "invalid_json", None),
        (b"{}", 400, "invalid_request", "model"),
        (b'{"model": 7}', 400, "invalid_request", "model"),
        (b'{"model": "nobody", "messages": []}', 404, "model_not_found", "model"),
        (b'{"model": "nobody@000000000000", "messages": []}', 404, "model_not_found", "model"),
        (b'{"model": "../../etc/passwd", "messages": []}', 404, "model_not_found", "model"),
        (b'{"model": "tiny"}', 400, "invalid_request", "messages"),
        (b'{"model": "tiny", "messages": [1], "temperature": -1}', 400, "invalid_request", "messages"),
    ],
)
async def test_bad_requests_get_the_envelope(
    server: Server, body: bytes, status: int, code: str, param: str | None
) -> None:
    response = await server.client.post("/v1/chat/completions", content=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"]
    assert error["type"]


async def test_unknown_routes_and_methods_get_the_envelope(server: Server) -> None:
    for method, path, code in (
        ("GET", "/v1/nothing", "route_not_found"),
        ("GET", "/v1/completions", "method_not_allowed"),
    ):
        response = await server.client.request(method, path)
        assert response.json()["error"]["code"] == code


async def test_an_unknown_route_is_named_with_what_there_is(server: Server) -> None:
    missing = (await server.client.post("/v1/embeddings")).json()["error"]["message"]
    assert missing.startswith("There is no route /v1/embeddings. There are /v1/chat/completions, /v1/completions, ")
    assert "/v1/models" in missing
    assert "/admin" not in missing
    wrong = (await server.client.get("/v1/completions")).json()["error"]["message"]
    assert wrong == "/v1/completions does not take GET. It takes POST."


async def test_a_model_that_is_missing_is_told_from_one_that_was_retired(server: Server) -> None:
    old = await server.voice("acme", seed=1)
    new = await server.voice("acme", seed=2)
    server.registry.retire(old, "test")
    await eventually(lambda: server.state(old) == "gone")

    async def message(model: str) -> str:
        response = await server.chat(model)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
        text: str = response.json()["error"]["message"]
        assert (await server.client.get(f"/v1/models/{model}")).json()["error"]["message"] == text
        return text

    assert await message(old) == f"{old} was retired. The voice acme answers."
    assert await message("acme@000000000000") == f"There is no version 'acme@000000000000'. Versions of acme: {new}."
    assert await message("acne") == "There is no model 'acne'. Did you mean acme?"
    assert await message("gpt-4o") == "There is no model 'gpt-4o'. There are: tiny, acme."


async def test_a_body_that_is_not_called_json_is_refused_in_words(server: Server) -> None:
    """curl -d says application/x-www-form-urlencoded unless told otherwise."""
    for kind, words in (
        ("application/x-www-form-urlencoded", "its content-type is application/x-www-form-urlencoded"),
        (None, "it came without a content-type"),
    ):
        response = await server.client.post(
            "/v1/conversations", content=b'{"title": "x"}', headers={"content-type": kind} if kind else {}
        )
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "invalid_request")
        assert error["message"] == f"The body was not read as JSON: {words}. Send content-type: application/json."


async def test_an_alias_moves_only_when_the_new_version_is_ready_and_no_request_fails(server: Server) -> None:
    old = await server.voice("acme", seed=1)
    bad = Fingerprint.model_validate(
        {
            "dtype": "float32",
            "probes": [
                {
                    "messages": [],
                    "prompt_tokens": [1],
                    "tokens": [2],
                    "logprobs": [-9],
                    "mean_logprob": -9,
                    "base_mean_logprob": -2,
                }
            ],
        }
    )
    broken = server.add("acme", seed=2, fingerprint=bad)
    server.registry.promote("acme", broken, "test")
    await eventually(lambda: server.state(broken) == "failed")
    assert (await server.chat("acme")).json()["model"] == old
    assert "does not serve what was trained" in (server.services.adapters.states()[broken][1] or "")
    assert broken not in server.engine.loaded
    pinned = await server.chat(broken)
    assert (pinned.status_code, pinned.json()["error"]["code"]) == (503, "voice_not_ready")
    assert pinned.headers["retry-after"]
    good = server.add("acme", seed=3)
    server.registry.promote("acme", good, "test")
    await eventually(lambda: server.answers("acme") == good)


async def test_one_bad_adapter_never_blocks_another(server: Server) -> None:
    first = make_version(server.home, server.base, "aaa")
    (server.home.adapter_folder(first.version) / "adapter_model.safetensors").write_bytes(b"broken")
    server.registry.publish(first.version, "test")
    second = server.add("zzz")
    await server.until_ready(second)
    await eventually(lambda: server.state(first.version) == "failed")


async def test_retire_drains_then_unloads_and_the_name_is_gone(tmp_path: Path) -> None:
    async with serving(tmp_path, step_seconds=0.05) as server:
        version = server.add("acme")
        await server.until_ready(version)
        answer = asyncio.create_task(server.chat(version, stream=True))
        await eventually(lambda: server.engine.running == 1)
        server.registry.retire(version, "test")
        await eventually(lambda: server.state(version) == "draining")
        assert (await server.chat(version)).status_code == 404
        assert version in server.engine.loaded
        assert "[DONE]" in (await answer).text
        await eventually(lambda: version not in server.engine.loaded)
        await eventually(lambda: server.state(version) == "gone")


async def test_a_drain_ends_at_its_deadline_with_an_error_event(tmp_path: Path) -> None:
    async with serving(tmp_path, step_seconds=0.3, drain_seconds=0.2) as server:
        version = server.add("acme")
        await server.until_ready(version)
        answer = asyncio.create_task(server.chat(version, stream=True))
        await eventually(lambda: server.engine.running == 1)
        await asyncio.sleep(0.35)
        server.registry.retire(version, "test")
        response = await answer
        assert "version_retired" in response.text
        assert "[DONE]" not in response.text
        await eventually(lambda: version not in server.engine.loaded)


@pytest.mark.both_databases
async def test_a_version_that_answers_for_a_voice_cannot_be_retired(server: Server) -> None:
    version = await server.voice("acme")
    with pytest.raises(CheckError, match="Promote another"):
        server.registry.retire(version, "test")
    with pytest.raises(InputError, match="not of other"):
        server.registry.promote("other", version, "test")
    with pytest.raises(NotFoundError):
        server.registry.promote("acme", "acme@000000000000", "test")
    server.registry.remove_voice("acme", "test")
    server.registry.retire(version, "test")
    await eventually(lambda: not server.engine.loaded)


async def test_a_dead_engine_ends_streams_with_an_error_and_comes_back_with_every_voice(tmp_path: Path) -> None:
    async with serving(tmp_path, step_seconds=0.05) as server:
        version = await server.voice("acme")
        answer = asyncio.create_task(server.chat("acme", stream=True))
        await eventually(lambda: server.engine.running == 1)
        await asyncio.sleep(0.08)
        server.engine.up = False
        assert "engine_unavailable" in (await answer).text
        await eventually(lambda: server.engine.starts == 2 and server.state(version) == "ready")
        assert (await server.chat("acme")).json()["model"] == version


async def test_health_readiness_and_metrics(server: Server) -> None:
    assert (await server.client.get("/healthz")).status_code == 200
    assert (await server.client.get("/readyz")).status_code == 200
    await server.chat("tiny")
    await server.chat("junk-name-from-a-client")
    text = (await server.client.get("/metrics")).text
    assert 'polytone_requests_total{adapter="tiny",status="200",version="tiny"} 1.0' in text
    assert 'polytone_requests_total{adapter="other",status="404",version="other"} 1.0' in text
    assert "junk-name" not in text
    assert "polytone_engine_up 1.0" in text


async def test_until_the_engine_is_up_the_server_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.engine.up = False
        server.services.status.problem = "the engine is starting"
        response = await server.chat("tiny")
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "engine_unavailable"


async def test_admin_shows_states_and_reasons(server: Server) -> None:
    version = server.add("acme")
    await server.until_ready(version)
    listed = (await server.client.get("/admin/adapters")).json()["adapters"]
    assert listed == [
        {
            "name": "acme",
            "rollout": None,
            "answers": None,
            "versions": [{"version": version, "state": "ready", "reason": None, "resident": True}],
        }
    ]
    assert (await server.client.get("/admin/adapters/acme")).json() == {**listed[0], "history": []}
    assert (await server.client.get("/admin/adapters/none")).status_code == 404


@pytest.mark.both_databases
async def test_a_replica_says_which_rollout_it_answers_with(server: Server) -> None:
    await server.voice("acme")
    await eventually(lambda: list(server.services.replicas.routes().values()) == [{"acme": 1}])


@pytest.mark.both_databases
def test_a_change_is_in_place_when_every_living_replica_answers_with_it(tmp_path: Path) -> None:
    """A version can be ready on every server while one of them still answers with the rollout before."""
    database = open_database(database_url(Home(tmp_path)))
    replicas = Replicas(database)
    rollout = Rollout(2, (Part("acme@0123456789ab", 100),))
    assert wait_until_routed(replicas, "acme", rollout, 60) == "no server"
    states: dict[str, tuple[str, str | None]] = {"acme@0123456789ab": ("ready", None)}
    replicas.report("one", states, {"acme": 2})
    replicas.report("two", states, {"acme": 1})
    assert wait_until_routed(replicas, "acme", rollout, 0) == "asked for"
    with pytest.raises(CheckError, match="the new rollout of acme was not in place within 0 s"):
        wait_until_routed(replicas, "acme", rollout, 0.05)
    replicas.report("two", states, {"acme": 3})
    assert wait_until_routed(replicas, "acme", rollout, 60) == "ready"
    nobody = Rollout(4, ())
    assert wait_until_routed(replicas, "acme", nobody, 0) == "asked for"
    for name in ("one", "two"):
        replicas.report(name, states, {})
    assert wait_until_routed(replicas, "acme", nobody, 60) == "ready"
    database.dispose()


@pytest.mark.both_databases
def test_a_failed_version_ends_the_wait_with_its_reason(tmp_path: Path) -> None:
    database = open_database(database_url(Home(tmp_path)))
    replicas = Replicas(database)
    replicas.report("one", {"acme@0123456789ab": ("failed", "its file is damaged")}, {"acme": 1})
    with pytest.raises(CheckError, match="failed on one: its file is damaged"):
        wait_until_routed(replicas, "acme", Rollout(2, (Part("acme@0123456789ab", 100),)), 60)
    database.dispose()


@pytest.mark.both_databases
async def test_a_replica_that_stops_leaves_the_registry(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await eventually(server.services.replicas.living)
    database = open_database(database_url(Home(tmp_path)))
    assert Replicas(database).living() == set()
    database.dispose()
