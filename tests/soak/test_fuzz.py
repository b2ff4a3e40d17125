"""Fuzz: whatever the OpenAPI description allows or forbids, no answer is a 5xx or outside the description."""

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from bench.running import ServerProcess
from polytone.contract.base import load_base
from polytone.serve.auth.keys import KeyStore, Kind
from polytone.serve.database.session import open_database
from tests.support.openapi import described
from tests.support.processes import polytone, served
from tests.support.serving import serving
from tests.support.tiny_home import TinyHome

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

EXAMPLES = 60
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]


@schemathesis.serializer("application/gzip")  # type: ignore[untyped-decorator]
def as_bytes(_: Any, value: Any) -> bytes:
    content = getattr(value, "data", value)
    return content if isinstance(content, bytes) else str(content).encode(errors="replace")


async def description(folder: Path) -> dict[str, Any]:
    async with serving(folder) as server:
        return described(server.app)


def fuzz(server: ServerProcess, document: dict[str, Any], skip: set[str], headers: dict[str, dict[str, str]]) -> int:
    """Every operation with generated requests, good and bad; returns how many were sent."""
    schema = schemathesis.openapi.from_dict(document)
    sent = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if f"{operation.method.upper()} {operation.path}" in skip:
            continue
        given_headers = headers.get(operation.path.split("/")[1], headers.get("", {}))

        sent += fuzz_operation(server.url, operation, given_headers)
    return sent


def fuzz_operation(url: str, operation: Any, headers: dict[str, str]) -> int:
    sent = 0

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def send(case: Any) -> None:
        nonlocal sent
        sent += 1
        answer = case.call(base_url=url, headers=headers, timeout=60)
        assert answer.status_code < 500, (case.as_curl_command(), answer.status_code, answer.text)
        case.validate_response(answer, checks=CHECKS)

    send()
    return sent


async def test_no_request_breaks_the_server_or_its_description(mine: TinyHome, tmp_path: Path) -> None:
    document = await description(tmp_path / "described")
    version = mine.voices["acme"].version
    with served(mine.home.root, tmp_path / "log", POLYTONE_BASE="tiny") as server:
        server.until_ready()
        for step in ("publish", "promote"):
            assert polytone("adapters", step, version, home=mine.home.root, POLYTONE_BASE="tiny").returncode == 0
        # Without keys; making one would end that.
        open_ = fuzz(server, document, {"POST /admin/keys"}, {})
        database = open_database(mine.home.database_url)
        keys = KeyStore(database)
        inference = {"authorization": f"Bearer {keys.create('fuzz-inference', Kind.INFERENCE, 'soak')[1]}"}
        admin = {"authorization": f"Bearer {keys.create('fuzz-admin', Kind.ADMIN, 'soak')[1]}"}
        database.dispose()
        keyed = fuzz(server, document, {"DELETE /admin/keys/{name}"}, {"v1": inference, "": admin})
        print(f"{open_} requests without keys, {keyed} with")
        assert server.popen.poll() is None
    assert load_base(mine.home, "tiny")
