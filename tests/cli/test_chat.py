"""`polytone chat` against the app over the double, on a real socket."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn
from sqlalchemy import select
from typer.testing import CliRunner, Result

from bench.running import free_port
from polytone.cli.exit_codes import ExitCode
from polytone.cli.main import app
from polytone.contract.errors import PolytoneError
from polytone.serve.auth.keys import Kind
from polytone.serve.database.session import reading
from polytone.serve.database.tables import AnswerRow
from tests.support.serving import Server, serving


@asynccontextmanager
async def listening(root: Path) -> AsyncIterator[tuple[Server, str]]:
    async with serving(root) as server:
        port = free_port()
        uvicorn_server = uvicorn.Server(uvicorn.Config(server.app, port=port, log_config=None, lifespan="off"))
        task = asyncio.create_task(uvicorn_server.serve())
        while not uvicorn_server.started:
            await asyncio.sleep(0.01)
        try:
            yield server, f"http://127.0.0.1:{port}"
        finally:
            uvicorn_server.should_exit = True
            await task


async def chat(*words: str, lines: str = "", key: str | None = None) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, ["chat", *words], input=lines, env={"POLYTONE_KEY": key})


def refusal(done: Result) -> PolytoneError:
    assert isinstance(done.exception, PolytoneError), (done.exception, done.output)
    return done.exception


@pytest.mark.slow
async def test_one_message_leaves_the_answer_alone_on_standard_output(tmp_path: Path) -> None:
    async with listening(tmp_path) as (server, url):
        version = await server.voice("acme")
        server.engine.says = ["Hello, ", "leaf-friend.\n", "Bye\x1b[2J."]
        done = await chat("acme", "--message", "Hi", "--url", f"{url}/")
        assert (done.exit_code, done.stdout) == (0, "Hello, leaf-friend.\nBye[2J.\n")
        assert done.stderr == f"[{version}]\n"


async def test_a_conversation_is_kept_under_one_id_until_it_is_ended(tmp_path: Path) -> None:
    async with listening(tmp_path) as (server, url):
        version = await server.voice("acme")
        server.engine.says = ["Yes."]
        for end in ("/quit\nnever sent\n", ""):  # as typed, and Ctrl-D
            server.engine.requests.clear()
            done = await chat("acme", "--url", url, lines=f"One?\n\n  \nTwo?\n{end}")
            assert (done.exit_code, done.stdout.count("Yes.")) == (0, 2), done.output
            assert done.stderr.count(f"[{version}]") == 2
            contents = [[one["content"] for one in request["messages"]] for request in server.engine.requests]
            assert contents == [["One?"], ["One?", "Yes.", "Two?"]]
        await server.services.recorder.flush()
        with reading(server.services.database) as session:
            conversations = session.scalars(select(AnswerRow.conversation)).all()
        assert (len(conversations), len(set(conversations))) == (4, 2)


async def test_what_is_wrong_is_one_sentence(tmp_path: Path) -> None:
    async with listening(tmp_path) as (server, url):
        await server.voice("acme")
        unknown = refusal(await chat("nosuch", "-m", "Hi", "--url", url))
        assert (unknown.code, unknown.exit_code, "acme" in unknown.message) == ("model_not_found", 2, True)
        mistyped = refusal(await chat("acne", "--url", url, lines="Hi\n"))
        assert (mistyped.code, "Did you mean acme?" in mistyped.message) == ("model_not_found", True)
        key = server.key(Kind.INFERENCE)["authorization"].removeprefix("Bearer ")
        for words in (["acme", "--url", url], ["acme", "--url", url, "-m", "Hi"]):
            denied = refusal(await chat(*words, lines="Hi\n"))
            assert (denied.exit_code, "Set POLYTONE_KEY" in denied.message) == (1, True)
            assert (await chat(*words, lines="Hi\n", key=key)).exit_code == 0
    nobody = refusal(await chat("acme", "-m", "Hi", "--url", url))
    assert (nobody.code, nobody.exit_code, url in nobody.message) == ("server_unreachable", 1, True)


async def test_an_answer_that_failed_is_not_part_of_the_conversation(tmp_path: Path) -> None:
    async with listening(tmp_path) as (server, url):
        await server.voice("acme")
        server.engine.says = ["Yes."]
        done = await chat("acme", "--url", url, lines=f"{'x' * 300_000}\nTwo?\n")
        assert "error: " in done.stderr
        assert [one["content"] for one in server.engine.requests[-1]["messages"]] == ["Two?"]


@pytest.mark.slow
async def test_ctrl_c_ends_the_conversation_without_a_traceback(tmp_path: Path) -> None:
    async with listening(tmp_path) as (server, url):
        await server.voice("acme")
        command = [sys.executable, "-m", "polytone", "chat", "acme", "--url", url]
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        assert process.stderr is not None
        assert b"/quit or Ctrl-D" in await process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
        assert (process.returncode, errors) == (ExitCode.INTERRUPTED, b"")
