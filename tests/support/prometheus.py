"""A real Prometheus with the deployment's configuration and rules, for the tests of what it is asked."""

import asyncio
import shutil
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from starlette.types import ASGIApp

from bench.running import free_port, running

DEPLOYED = Path(__file__).parents[2] / "deploy" / "prometheus"
EVERY = "1s"
PATIENCE = 30.0  # seconds, for two busy cores; it looks for its targets every five
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus on the PATH: apt-get install prometheus"
)


@dataclass
class Prometheus:
    """One that runs, asked through its API."""

    client: httpx.AsyncClient

    async def get(self, path: str, **parameters: str) -> Any:
        answer = (await self.client.get(f"/api/v1/{path}", params=parameters)).json()
        assert answer["status"] == "success", f"{parameters}: {answer['error']}"
        return answer["data"]

    async def labels_by_metric(self) -> dict[str, set[str]]:
        """Every metric that there is -> the labels that it has."""
        found: dict[str, set[str]] = defaultdict(set)
        for series in await self.get("series", **{"match[]": '{__name__=~".+"}'}):
            found[series["__name__"]] |= set(series) - {"__name__"}
        return dict(found)

    async def finds(self, selector: str) -> bool:
        """Whether any series is selected."""
        return bool(await self.get("series", **{"match[]": selector}))

    async def gives(self, query: str) -> bool:
        """Whether the query has an answer now."""
        return bool((await self.get("query", query=query))["result"])

    async def unanswered(self, queries: Iterable[str]) -> list[str]:
        """Those that have no answer, however long one waits."""
        left, deadline = list(queries), time.monotonic() + PATIENCE
        while (left := [query for query in left if not await self.gives(query)]) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        return left


def configure(folder: Path, port: int, key: str) -> Path:
    """A copy of the deployment's folder, for a server on this machine that is scraped more often."""
    shutil.copytree(DEPLOYED, folder)
    path = folder / "prometheus.yaml"
    content = yaml.safe_load(path.read_text())
    content["global"] |= {"scrape_interval": EVERY, "evaluation_interval": EVERY}
    (job,) = content["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    (folder / "key").write_text(key)
    job["authorization"]["credentials_file"] = str(folder / "key")
    path.write_text(yaml.safe_dump(content))
    return path


@asynccontextmanager
async def scraping(folder: Path, port: int, key: str = "none") -> AsyncIterator[Prometheus]:
    """Scrape the server on `port` with `key` for as long as the block lasts; `folder` must not exist."""
    configuration = configure(folder, port, key)
    own_port = free_port()
    command = [
        "prometheus",
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{own_port}",
    ]
    with running(command, {}, own_port, folder / "log") as process:
        await asyncio.to_thread(process.until_ready, "/-/ready", PATIENCE)
        async with httpx.AsyncClient(base_url=process.url) as client:
            yield Prometheus(client)


@asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[int]:
    """The app on a real socket; gives the port."""
    server = uvicorn.Server(uvicorn.Config(app, port=(port := free_port()), log_config=None, lifespan="off"))
    running = asyncio.create_task(server.serve())
    try:
        yield port
    finally:
        server.should_exit = True
        await running
