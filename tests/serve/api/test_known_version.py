"""What is known of one version: its manifest, its state here, and what its evaluation found."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from polytone.contract.evaluation import GateVerdict, verdict_path, write_verdict
from polytone.contract.export import ExportReference
from polytone.contract.home import Home
from polytone.contract.manifest import MANIFEST, Data, DataSource
from tests.support.adapters import change_manifest
from tests.support.serving import Server, eventually, serving

from .test_promotion import REPEATS, judged


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path) as server:
        yield server


async def asked(server: Server, version: str) -> httpx.Response:
    return await server.client.get(f"/admin/adapters/{version.replace('@', '/versions/')}")


async def known(server: Server, version: str) -> dict[str, Any]:
    answer = await asked(server, version)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def evaluated(home: Home, verdict: GateVerdict, folder: str, **content: Any) -> None:
    """Leave a verdict with its folder, as an evaluation would."""
    whole = verdict.model_copy(update={"folder": folder})
    write_verdict(home, whole)
    (home.evaluations / folder).mkdir(parents=True, exist_ok=True)
    document = {"verdict": whole.model_dump(mode="json"), **content}
    (home.evaluations / folder / "evaluation.json").write_text(json.dumps(document))


async def test_a_version_is_known_by_its_manifest(server: Server) -> None:
    export = ExportReference(sha256="0" * 64, format="sft", adapter="acme", completions=["chatcmpl-1", "chatcmpl-2"])
    source = DataSource(path="rows.jsonl", sha256="0" * 64, rows=2, assistant_tokens=10, export=export)
    acme = await server.voice("acme", 1, data=Data(train=source, held_out=source), system_prompt="Be brief.")
    told = await known(server, acme)
    assert (told["version"], told["state"], told["reason"], told["resident"]) == (acme, "ready", None, True)
    manifest = told["manifest"]
    assert (manifest["base"], manifest["rank"], manifest["rows"]) == (server.base.id, 4, 2)
    assert (manifest["held_out_loss"], manifest["base_loss"], manifest["system_prompt"]) == (2.0, 3.0, "Be brief.")
    assert manifest["export"] == {"sha256": "0" * 64, "format": "sft", "adapter": "acme", "completions": 2}
    assert told["evaluation"] is None


@pytest.mark.both_databases
async def test_one_that_is_not_loaded_is_known_by_its_files(server: Server) -> None:
    acme = server.add("acme", 1, recipe={"training": {"method": "kto"}})
    await server.until_ready(acme)
    server.registry.retire(acme, "test")
    await eventually(lambda: server.state(acme) == "gone")
    told = await known(server, acme)
    assert (told["state"], told["resident"], told["manifest"]["method"]) == ("retired", False, "kto")
    folder = server.home.adapter_folder(acme)
    change_manifest(folder, recipe={"training": None})
    assert (await known(server, acme))["manifest"]["method"] is None
    for damage in ("{}", "no JSON"):
        (folder / MANIFEST).write_text(damage)
        assert (await known(server, acme))["manifest"] is None
    (folder / MANIFEST).unlink()
    assert (await known(server, acme))["manifest"] is None


async def test_an_evaluation_is_told_gate_by_gate(server: Server) -> None:
    acme = server.add("acme", 1)
    held = [
        {"gate": "max_repetition", "figure": 0.52, "bar": 0.3, "passed": False},
        {"gate": "min_tone", "figure": 0.9, "bar": 0.5, "passed": True},
    ]
    figures = {"voice": {"loss": {"value": 1.5, "low": 1.4, "high": 1.6}}}
    verdict = judged(server.home, acme, REPEATS)
    evaluated(server.home, verdict, f"{acme}-20260101-000000", held=held, models=figures)
    found = (await known(server, acme))["evaluation"]
    assert (found["verdict"], found["passed"], found["data"]["rows"]) == ("not good enough", False, 30)
    assert (found["gates"], found["figures"]) == (held, figures)
    assert [reason["message"] for reason in found["reasons"]] == [REPEATS.message]


async def test_without_its_folder_an_evaluation_has_the_gates_that_failed(server: Server) -> None:
    """The folder may lie elsewhere, be of another evaluation, or be damaged; none of that may hide the verdict."""
    acme = server.add("acme", 1)
    verdict = judged(server.home, acme, REPEATS)
    failed = [{"gate": "max_repetition", "figure": 0.52, "bar": 0.3, "passed": False}]
    evaluated(server.home, verdict.model_copy(update={"passed": True}), "other", held=[], models={"voice": {}})
    for folder in (None, "elsewhere", "other", "../evaluations/other"):
        write_verdict(server.home, verdict.model_copy(update={"folder": folder}))
        found = (await known(server, acme))["evaluation"]
        assert (found["gates"], found["figures"]) == (failed, {})
    evaluated(server.home, verdict, "other")
    (server.home.evaluations / "other" / "evaluation.json").write_text("[" * 100_000)
    assert (await known(server, acme))["evaluation"]["gates"] == failed
    verdict_path(server.home, acme).write_text("{}")
    assert (await known(server, acme))["evaluation"] is None


@pytest.mark.both_databases
async def test_one_that_was_never_published_is_not_known(server: Server) -> None:
    for version in ("acme@000000000000", "acme@xyz", "A@000000000000"):
        missing = await asked(server, version)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "version_not_found")
