"""The engine's contract, held by the double and by real vLLM on a tiny random Llama."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import pytest
import pytest_asyncio

from polytone.contract.base import base_folder
from polytone.serve.adapters.fingerprint import verify
from polytone.serve.engine.base import Body, Engine, EngineError
from polytone.serve.engine.processes import engine_processes
from polytone.serve.engine.vllm import (
    ENGINE_RANKS,
    VllmEngine,
    VllmOptions,
    build_client,
    engine_rank,
    start_problem,
)
from tests.support.fake_engine import FakeEngine
from tests.support.tiny_home import TinyHome

HELLO: Body = {"messages": [{"role": "user", "content": "question 3"}], "temperature": 0, "max_tokens": 12}

pytestmark = pytest.mark.asyncio(loop_scope="module")


def real_engine(tiny: TinyHome) -> VllmEngine:
    return VllmEngine(
        VllmOptions(
            base=base_folder(tiny.home, "tiny"),
            base_id="tiny",
            max_context=256,
            max_streams=16,
            max_lora_rank=8,
            max_batch_adapters=4,
            max_resident_adapters=8,
            kv_cache_gib=1,
            gpu_memory_share=0.5,
            tool_parser="hermes",
        )
    )


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["double", pytest.param("vllm", marks=pytest.mark.engine)]
)
async def engine(request: pytest.FixtureRequest, tiny: TinyHome) -> AsyncIterator[Engine]:
    made: Engine = FakeEngine("tiny", step_seconds=0.01) if request.param == "double" else real_engine(tiny)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
        assert not made.healthy()


@pytest_asyncio.fixture(loop_scope="module")
async def voices(engine: Engine, tiny: TinyHome) -> AsyncIterator[list[str]]:
    versions = [manifest.version for manifest in tiny.voices.values()]
    for version in versions:
        await engine.load(version, tiny.home.adapter_folder(version))
    yield versions
    for version in versions:
        await engine.unload(version)


async def whole(engine: Engine, request: Body, version: str | None) -> Body:
    response = await engine.chat(request, version)
    assert isinstance(response, dict)
    return response


async def streamed(engine: Engine, request: Body, version: str | None) -> list[str]:
    events = await engine.chat({**request, "stream": True}, version)
    assert not isinstance(events, dict)
    return [event async for event in events]


async def test_answers_name_who_answered(engine: Engine, voices: list[str]) -> None:
    for version in (None, *voices):
        response = await whole(engine, HELLO, version)
        assert response["model"] == (version or "tiny")
        assert response["id"].startswith("chatcmpl-")
        assert response["choices"][0]["message"]["content"]
        json.dumps(response)


async def test_every_streamed_chunk_names_who_answers_and_the_stream_ends(engine: Engine, voices: list[str]) -> None:
    events = await streamed(engine, HELLO, voices[0])
    assert events[-1] == "data: [DONE]\n\n"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert {chunk["model"] for chunk in chunks} == {voices[0]}


async def test_a_stream_says_what_the_whole_answer_says(engine: Engine, voices: list[str]) -> None:
    events = await streamed(engine, HELLO, voices[0])
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert text.strip() == (await whole(engine, HELLO, voices[0]))["choices"][0]["message"]["content"].strip()


async def test_base_and_voices_share_a_batch_and_none_answers_for_another(engine: Engine, voices: list[str]) -> None:
    names = [None, *voices] * 4
    alone = {name: (await whole(engine, HELLO, name))["choices"][0]["message"]["content"] for name in (None, *voices)}
    together = await asyncio.gather(*(whole(engine, HELLO, name) for name in names))
    assert [response["model"] for response in together] == [name or "tiny" for name in names]
    assert [response["choices"][0]["message"]["content"] for response in together] == [alone[name] for name in names]
    assert len(set(alone.values())) == 3


async def test_seeds_repeat_answers_and_long_prompts_with_one_end_no_engine(engine: Engine, voices: list[str]) -> None:
    """Sixteen prompts are more than a step reads, so that some are read in parts. With a seed that ended vLLM's engine
    on a CPU."""
    content = " ".join(f"word{number}" for number in range(20))
    long = {"messages": [{"role": "user", "content": content}], "temperature": 1, "seed": 7, "max_tokens": 6}
    together = await asyncio.gather(*(whole(engine, long, voices[i % 2]) for i in range(16)))
    assert engine.healthy()
    for i, response in enumerate(together):
        again = await whole(engine, long, voices[i % 2])
        assert again["choices"][0]["message"]["content"] == response["choices"][0]["message"]["content"]


async def test_what_is_asked_with_a_load_is_answered_by_it_or_ends_with_it(
    engine: Engine, voices: list[str], tiny: TinyHome, tmp_path: Path
) -> None:
    """A load that failed within a step would end vLLM's engine; what was worked on then must not be found again in the
    prefix cache when the version has been loaded after all."""
    assert engine.loads_in_order
    version, folder = voices[0], tiny.home.adapter_folder(voices[0])
    words = " ".join(f"word{number}" for number in range(20))
    question: Body = {"messages": [{"role": "user", "content": words}], "temperature": 0, "max_tokens": 12}
    expected = (await whole(engine, question, version))["choices"][0]["message"]["content"]
    await engine.unload(version)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "adapter_model.safetensors").unlink()
    for _ in range(2):
        load, asked = await asked_with_load(engine, question, version, broken)
        with pytest.raises(EngineError) as caught:
            await load
        assert caught.value.code == "adapter_refused"
        await asyncio.gather(asked, return_exceptions=True)
        assert engine.healthy()
    load, asked = await asked_with_load(engine, question, version, folder)
    assert (await asked)["choices"][0]["message"]["content"] == expected
    await load


async def asked_with_load(engine: Engine, request: Body, version: str, folder: Path) -> list[asyncio.Task[Any]]:
    load = asyncio.create_task(engine.load(version, folder))
    await asyncio.sleep(0)
    return [load, asyncio.create_task(whole(engine, request, version))]


async def test_bad_parameters_are_refused_with_400_and_the_field(engine: Engine) -> None:
    for request in ({**HELLO, "temperature": -1}, {**HELLO, "messages": []}):
        with pytest.raises(EngineError) as caught:
            await engine.chat(request, None)
        assert caught.value.status == 400
        assert caught.value.message


async def test_a_version_that_is_not_loaded_is_refused(engine: Engine, voices: list[str]) -> None:
    with pytest.raises(EngineError) as caught:
        await engine.chat(HELLO, "ghost@000000000000")
    assert caught.value.status == 404


async def test_an_unloaded_version_is_gone_and_may_come_back(engine: Engine, voices: list[str], tiny: TinyHome) -> None:
    await engine.unload(voices[0])
    with pytest.raises(EngineError):
        await engine.chat(HELLO, voices[0])
    await engine.unload(voices[0])
    await engine.load(voices[0], tiny.home.adapter_folder(voices[0]))
    assert (await whole(engine, HELLO, voices[0]))["model"] == voices[0]


async def test_loading_a_folder_that_is_no_adapter_fails_and_harms_nothing(engine: Engine, tiny: TinyHome) -> None:
    with pytest.raises(EngineError) as caught:
        await engine.load("ghost@000000000000", tiny.home.root)
    assert caught.value.code == "adapter_refused"
    assert engine.healthy()


async def test_a_closed_stream_frees_its_place(engine: Engine, voices: list[str]) -> None:
    for _ in range(20):
        events: Any = await engine.chat({**HELLO, "max_tokens": 100, "stream": True}, voices[0])
        await anext(events)
        await events.aclose()
    async with asyncio.timeout(20):
        await whole(engine, HELLO, voices[0])


TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "set_urgency",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"urgent": {"type": "boolean"}},
            "required": ["urgent"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.engine
async def test_the_engine_speaks_openai(engine: Engine, voices: list[str]) -> None:
    """n, stop, seed, logprobs, JSON, tools, usage and text completions, with an adapter."""
    if isinstance(engine, FakeEngine):
        return
    who = voices[0]
    drawn = {**HELLO, "temperature": 1.0, "seed": 5}
    two = await whole(engine, {**drawn, "n": 2}, who)
    assert [choice["index"] for choice in two["choices"]] == [0, 1]
    assert two["usage"]["total_tokens"] == two["usage"]["prompt_tokens"] + two["usage"]["completion_tokens"]
    text = [(await whole(engine, drawn, who))["choices"][0]["message"]["content"] for _ in range(2)]
    assert text[0] == text[1]
    said = (await whole(engine, HELLO, who))["choices"][0]["message"]["content"]
    stopped = await whole(engine, {**HELLO, "stop": [said[2]]}, who)
    assert stopped["choices"][0]["message"]["content"] == said[: said.index(said[2])]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    scored = (await whole(engine, {**HELLO, "logprobs": True, "top_logprobs": 3}, who))["choices"][0]["logprobs"]
    assert all(len(token["top_logprobs"]) == 3 for token in scored["content"])
    schema = {"name": "ticket", "schema": TOOL["function"]["parameters"]}
    shaped = {"type": "json_schema", "json_schema": schema}
    answer = await whole(engine, {**HELLO, "max_tokens": 60, "response_format": shaped}, who)
    assert set(json.loads(answer["choices"][0]["message"]["content"])) == {"urgent"}
    choice = {"type": "function", "function": {"name": "set_urgency"}}
    called = await whole(engine, {**HELLO, "max_tokens": 150, "tools": [TOOL], "tool_choice": choice}, who)
    assert "tool_calls" in called["choices"][0]["message"], called
    call = called["choices"][0]["message"]["tool_calls"][0]["function"]
    assert call["name"] == "set_urgency"
    assert set(json.loads(call["arguments"])) == {"urgent"}
    events = await streamed(engine, {**HELLO, "stream_options": {"include_usage": True}}, who)
    last = json.loads(events[-2].removeprefix("data: "))
    assert (last["choices"], last["usage"]["completion_tokens"] > 0) == ([], True)
    completed = await engine.complete({"prompt": "one two", "max_tokens": 3, "temperature": 0}, who)
    assert isinstance(completed, dict)
    assert completed["model"] == who
    assert completed["usage"]["completion_tokens"] <= 3


@pytest.mark.engine
async def test_who_asks_for_log_probabilities_gets_its_own_in_any_batch(engine: Engine, voices: list[str]) -> None:
    """On a CPU they are computed for those rows alone that asked; the others share the batch and go on."""
    if isinstance(engine, FakeEngine):
        return

    async def scored(name: str | None, top: int | None) -> list[tuple[str, float]]:
        asked = {} if top is None else {"logprobs": True, "top_logprobs": top}
        choice = (await whole(engine, {**HELLO, **asked}, name))["choices"][0]
        if top is None:
            return [(choice["message"]["content"], 0.0)]
        tops = [one for token in choice["logprobs"]["content"] for one in token["top_logprobs"]]
        return [(one["token"], round(one["logprob"], 3)) for one in tops]

    wanted = [(None, None), (voices[0], 2), (None, 5), (voices[1], None), (voices[1], 3), (voices[0], None)]
    alone = [await scored(*one) for one in wanted]
    together = await asyncio.gather(*(scored(*one) for one in wanted * 2))
    assert len({token for token, _ in alone[1]} ^ {token for token, _ in alone[4]}) > 0
    for one, other in zip(alone * 2, together, strict=True):
        assert [token for token, _ in one] == [token for token, _ in other]
        assert [score for _, score in one] == pytest.approx([score for _, score in other], abs=2e-3)


@pytest.mark.engine
async def test_the_prefix_cache_is_on_and_keeps_voices_apart(engine: Engine, voices: list[str]) -> None:
    """The same long prompt to every voice, twice: the second answers come from the cache and are the first ones."""
    if isinstance(engine, FakeEngine):
        return
    body = {**HELLO, "messages": [{"role": "user", "content": "question 3 " * 12}]}
    first = [await whole(engine, body, who) for who in (None, *voices)]
    second = [await whole(engine, body, who) for who in (None, *voices)]
    texts = [answer["choices"][0]["message"]["content"] for answer in first]
    assert texts == [answer["choices"][0]["message"]["content"] for answer in second]
    assert len(set(texts)) == 3
    hits = [line for line in engine.metrics().decode().splitlines() if line.startswith("vllm:prefix_cache_hits_total")]
    assert float(hits[0].rpartition(" ")[2]) > 0


@pytest.mark.engine
async def test_a_version_is_verified_while_others_stream(engine: Engine, voices: list[str], tiny: TinyHome) -> None:
    """Log-probabilities of a prompt, asked for beside a stream with an adapter, ended vLLM's CPU engine: it indexed the
    rows of the whole prompt by the batch's sampled rows. A version that arrived under load took the server with it."""
    if isinstance(engine, FakeEngine):
        return

    async def stream(version: str | None) -> list[str]:
        return await streamed(engine, {**HELLO, "max_tokens": 120, "ignore_eos": True}, version)

    running = [asyncio.create_task(stream(version)) for version in (None, *voices)]
    await asyncio.sleep(0.3)
    for manifest in tiny.voices.values():
        await verify(engine, manifest)
    assert all(events[-1] == "data: [DONE]\n\n" for events in await asyncio.gather(*running))
    assert engine.healthy()


@pytest.mark.engine
async def test_the_fingerprint_of_what_was_trained_matches_and_anothers_does_not(tiny: TinyHome) -> None:
    from polytone.contract.errors import CheckError

    engine = real_engine(tiny)
    acme, zest = tiny.voices["acme"], tiny.voices["zest"]
    try:
        await engine.start()
        await engine.load(acme.version, tiny.home.adapter_folder(acme.version))
        await verify(engine, acme)
        await engine.unload(acme.version)
        await engine.load(acme.version, tiny.home.adapter_folder(zest.version))  # the wrong weights under a good name
        with pytest.raises(CheckError) as caught:
            await verify(engine, acme)
        assert caught.value.code == "fingerprint_mismatch"
    finally:
        await engine.stop()


@pytest.mark.engine
async def test_a_killed_engine_is_noticed_and_can_be_started_again(tiny: TinyHome) -> None:
    engine = real_engine(tiny)
    version = tiny.voices["acme"].version
    await engine.start()
    try:
        events: Any = await engine.chat({**HELLO, "max_tokens": 200, "ignore_eos": True, "stream": True}, None)
        await anext(events)
        for process in engine_processes():
            process.kill()
        with pytest.raises(EngineError) as caught:
            async with asyncio.timeout(30):
                async for event in events:
                    if '"error"' in event:
                        raise EngineError("in the stream", code="engine_error", status=503)
        assert caught.value.status in (500, 503)
        assert not engine.healthy()
        await engine.stop()
        assert engine_processes() == []
        await engine.start()
        await engine.load(version, tiny.home.adapter_folder(version))
        assert (await whole(engine, HELLO, version))["model"] == version
    finally:
        await engine.stop()


async def test_an_advised_rank_is_one_that_the_engine_starts_with() -> None:
    """A refused adapter of rank 24 advised POLYTONE_MAX_LORA_RANK=24, with which vLLM ended in its usage text."""
    assert [engine_rank(rank) for rank in (1, 2, 8, 16, 24, 33, 512)] == [1, 8, 8, 16, 32, 64, 512]
    assert {engine_rank(rank) for rank in range(1, 513)} == set(ENGINE_RANKS)


@pytest.mark.engine
async def test_the_ranks_are_those_of_this_vllm() -> None:
    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == ENGINE_RANKS


@pytest.mark.engine
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--max-lora-rank", "24"], "vLLM refused an option: argument --max-lora-rank"),
        (["--tool-call-parser", "hermis"], "POLYTONE_TOOL_PARSER: vLLM has no parser 'hermis'. It has .*hermes"),
    ],
)
async def test_an_option_that_vllm_refuses_is_an_error_and_no_usage_text(
    capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    """vLLM printed a screenful of usage and ended the server."""
    with pytest.raises(ValueError, match=problem):
        build_client(arguments, lambda _: None)
    assert "usage:" not in capsys.readouterr().err


async def test_a_failed_engine_process_refers_to_the_log() -> None:
    vllms = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
    assert start_problem(vllms) == "its process failed while it started; the engine's log says why"
    assert start_problem(MemoryError()) == "MemoryError"
