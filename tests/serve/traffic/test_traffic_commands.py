"""The commands `polytone drift`, `feedback` and `traffic` on a database with answers in it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from polytone.cli.main import app
from polytone.contract.errors import PolytoneError
from tests.support.serving import Server, serving


def run(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--home", str(home)], env={"COLUMNS": "80"})


def refused(result: Result) -> PolytoneError:
    assert isinstance(result.exception, PolytoneError), result.output
    return result.exception


async def corrected(server: Server, question: str, correction: str) -> str:
    messages = [{"role": "user", "content": question}]
    answer = await server.client.post("/v1/chat/completions", json={"model": "acme", "messages": messages})
    completion = str(answer.json()["id"])
    body = {"completion_id": completion, "key": "correction", "text": correction, "annotator": {"id": "kim"}}
    assert (await server.client.post("/v1/feedback", json=body)).status_code == 201
    return completion


async def test_an_export_writes_no_empty_file(tmp_path: Path) -> None:
    """An empty file of held-out rows was once written, and training refused it."""
    out = tmp_path / "exports"
    export = ("feedback", "export", "--adapter", "acme", "--out", str(out))
    async with serving(tmp_path) as server:
        await server.voice("acme")
        await server.services.recorder.flush()
        nothing = run(tmp_path, *export)
        assert (nothing.exit_code, out.exists()) == (1, False)
        assert "train: no rows, so no file was written; leave data.train out of the recipe." in nothing.output
        completion = await corrected(server, "Where is my parcel?", "On its way.")
        await server.services.recorder.flush()
    done = run(tmp_path, *export)
    assert done.exit_code == 0
    assert sorted(file.name for file in out.iterdir()) == ["acme-sft-train.jsonl", "acme-sft-train.manifest.json"]
    assert "acme-sft-train.jsonl: 1 row from 1 answer\n" in done.output
    assert "left out" not in done.output
    assert completion in (out / "acme-sft-train.jsonl").read_text()
    as_json = json.loads(run(tmp_path, *export, "--json").output)
    assert as_json["files"] == [str(out / "acme-sft-train.jsonl")]
    assert [one["split"] for one in as_json["manifests"]] == ["train", "held_out"]


async def test_names_that_do_not_exist_are_refused_with_the_nearest(tmp_path: Path) -> None:
    """Two empty files and "Nothing was observed yet" once looked like success."""
    async with serving(tmp_path) as server:
        await server.voice("acme")
    for arguments in (("drift", "acne"), ("feedback", "export", "--adapter", "acne", "--out", str(tmp_path / "x"))):
        error = refused(run(tmp_path, *arguments))
        assert (error.code, error.exit_code) == ("voice_not_found", 2)
        assert "Did you mean acme" in error.message
    assert refused(run(tmp_path, "drift", "acme@000000000000")).code == "version_not_found"
    assert not (tmp_path / "x").exists()
    quiet = run(tmp_path, "drift", "acme")
    assert (quiet.exit_code, "Nothing was observed yet" in quiet.output) == (0, True)


async def test_ids_in_a_list_can_be_copied(tmp_path: Path) -> None:
    """In 80 columns a table cut them to "chatcmpl-939e…"."""
    async with serving(tmp_path) as server:
        version = await server.voice("acme")
        completion = await corrected(server, "Where is it?", "On its\nway to you. " * 20)
        await server.services.recorder.flush()
    (line,) = run(tmp_path, "feedback", "list").output.splitlines()
    at, shown, target, said = line.split("  ")
    assert (shown, target) == (version, completion)
    assert said.startswith("kim: correction On its way to you.")
    assert at.count(":") == 2


async def test_a_conversation_is_forgotten_from_the_command_line(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.voice("acme")
        for conversation in ("Jo", "Jo", "Al"):
            await server.chat("acme", {"x-conversation-id": conversation})
        await server.services.recorder.flush()
        assert run(tmp_path, "traffic", "forget", "Jo").output == "2 answers deleted.\n"
        assert refused(run(tmp_path, "traffic", "forget")).code == "invalid_request"
        left: dict[str, Any] = json.loads(run(tmp_path, "traffic", "forget", "Al", "--json").output)
        assert left == {"deleted": 1}


async def test_a_text_is_found_and_forgotten_from_the_command_line(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        version = await server.voice("acme")
        completion = (await server.chat("acme", {"x-conversation-id": "Jo"})).json()["id"]
        await server.services.recorder.flush()
        found = run(tmp_path, "traffic", "find", "--text", "Hello")
        assert (found.exit_code, found.output.split()[1:]) == (0, [version, completion, "Jo"])
        forget = CliRunner().invoke(app, ["traffic", "forget", "--text", "-", "--home", str(tmp_path)], input="Hello\n")
        assert forget.output == "1 answer deleted.\n"
        nothing = run(tmp_path, "traffic", "find", "--text", "Hello", "--json")
        assert (nothing.exit_code, json.loads(nothing.output)) == (1, {"answers": []})


@pytest.mark.parametrize("arguments", [("feedback", "export", "--adapter", "acme", "--format", "csv")])
def test_an_unknown_format_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert run(tmp_path, *arguments).exit_code == 2
