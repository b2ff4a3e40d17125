"""Upload a version to a server elsewhere, over its admin API."""

import tempfile
from pathlib import Path
from typing import Any

import httpx

from polytone.contract.errors import CheckError, UnavailableError
from polytone.contract.home import Home
from polytone.contract.version_id import VersionId
from polytone.serve.adapters.archive import pack_version

PATIENCE = httpx.Timeout(600, connect=10)


def push_version(home: Home, version: str, url: str, key: str | None) -> dict[str, Any]:
    """Returns the server's answer.

    Raises:
        UnavailableError: `server_unreachable`.
        CheckError: what the server refused it for, under the server's own code.
    """
    voice = VersionId.parse(version).voice
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with tempfile.TemporaryDirectory() as work:
        archive = Path(work) / "version.tar.gz"
        pack_version(home, version, archive)
        try:
            with archive.open("rb") as content:
                answer = httpx.post(
                    f"{url.rstrip('/')}/admin/adapters/{voice}/versions",
                    content=content,
                    headers={"content-type": "application/gzip", **headers},
                    timeout=PATIENCE,
                )
        except httpx.TransportError as error:
            raise UnavailableError(
                f"{url}: cannot be reached ({error}). Is the server running there?", code="server_unreachable"
            ) from None
    if answer.is_success:
        return dict(answer.json())
    try:
        refusal = answer.json()["error"]
        raise CheckError(f"{url} refused {version}: {refusal['message']}", code=str(refusal["code"]))
    except (ValueError, KeyError, TypeError):
        raise CheckError(f"{url} answered {answer.status_code} without a reason.", code="server_refused") from None
