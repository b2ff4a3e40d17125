"""The dashboards and rules ask for what is there: held by a real Prometheus that scrapes a running server."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from starlette.responses import PlainTextResponse

from polytone.serve.auth.keys import Kind
from tests.serve.drift.test_drift import MINE, PLAIN, answers, referenced, work
from tests.support.dashboards import (
    BUILT_IN,
    GRAFANA,
    VARIABLE,
    Query,
    dashboards,
    panels,
    problems,
    queries,
    variable_queries,
    variables,
)
from tests.support.prometheus import DEPLOYED, Prometheus, configure, listening, needs_prometheus, scraping
from tests.support.serving import Server, eventually, serving

beside_prometheus = pytest.mark.asyncio(loop_scope="module")

# What the slowest rules record, and an alert: with these all that is made of scraped metrics is there.
MADE_BY_RULES = ("polytone:error_share:rate6h", 'ALERTS{alertname="PolytoneDrift"}')
OURS = [query for query in queries() if not query.engines_own]
RENAMED = {"polytone_queue_depth": "polytone_queue_length", "signal=": "symptom="}
COLUMNS = 24


@dataclass
class Watched:
    """A Prometheus that knows a server which was used, and one that knows the same with other names."""

    prometheus: Prometheus
    renamed: Prometheus


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    root = tmp_path_factory.mktemp("watched")
    async with serving(root / "home", quiet_seconds=0) as server, listening(server.app) as port:
        await use(server)
        key = server.key(Kind.ADMIN, "prometheus")["authorization"].removeprefix("Bearer ")
        text = server.services.metrics.render().decode()
        for old, new in RENAMED.items():
            assert old in text
            text = text.replace(old, new)
        async with (
            scraping(root / "prometheus", port, key) as prometheus,
            listening(PlainTextResponse(text)) as other,
            scraping(root / "renamed", other) as renamed,
        ):
            assert await asyncio.gather(*(one.unanswered(MADE_BY_RULES) for one in (prometheus, renamed))) == [[], []]
            yield Watched(prometheus, renamed)


async def use(server: Server) -> None:
    """Chat, be refused, fail to load, say what answers were like, and drift: all that is counted on some occasion."""
    version = referenced(server)
    server.registry.promote("acme", version, "test")
    await server.until_ready(version)
    completions = [(await server.chat("acme")).json()["id"] for _ in range(2)]
    assert (await server.chat("acme", stream=True)).status_code == 200
    assert (await server.chat("nobody")).status_code == 404
    server.engine.wrong = True
    broken = server.add("zest", seed=1)
    await eventually(lambda: server.state(broken) == "failed")
    assert (await server.chat(broken)).status_code == 503
    pair = {"a": completions[0], "b": completions[1], "shown": "a", "blind": True}
    for feedback in (
        {"completion_id": completions[0], "key": "thumb", "value": "down"},
        {"completion_id": completions[1], "key": "thumb", "value": "down"},
        {"completion_id": completions[1], "key": "rating", "value": 4},
        {"completion_id": completions[1], "key": "correction", "text": "It left our kitchen today."},
        {"pair": pair, "key": "preference", "value": "tie"},
    ):
        assert (await server.client.post("/v1/feedback", json=feedback)).status_code == 201
    decision = {"reviewer": "ann", "decision": "accept"}
    assert (await server.client.post(f"/admin/reviews/{completions[0]}", json=decision)).status_code == 200
    for replies in (MINE, PLAIN):
        answers(server, version, replies)
        work(server)
    server.services.metrics.show_reviews(server.services.reviews.counts())


@needs_prometheus
@beside_prometheus
async def test_every_panel_variable_and_rule_names_metrics_and_labels_that_exist(watched: Watched) -> None:
    there = await watched.prometheus.labels_by_metric()
    assert not [problem for query in OURS for problem in problems(query, there)]
    assert len(OURS) > 80
    assert {"up", "ALERTS", "polytone_requests_total", "polytone:error_share:rate5m"} <= set(there)
    assert not [name for name in there if name.endswith("_created")]  # prometheus.yaml leaves them out


@needs_prometheus
@beside_prometheus
async def test_every_selector_finds_a_series(watched: Watched) -> None:
    """Values too: a status, a reason, the bound of a bucket."""
    asked = {str(selector): query.where for query in OURS for selector in query.selectors}
    assert not [f"{asked[one]}: {one}" for one in asked if not await watched.prometheus.finds(one)]


@needs_prometheus
@beside_prometheus
async def test_every_panel_shows_something(watched: Watched) -> None:
    """Two sides of a division whose labels differ give nothing, and Prometheus does not call that an error."""
    shown = {query.filled: f"{query.where}: {query.text}" for query in OURS if ", panel " in query.where}
    assert not [shown[query] for query in await watched.prometheus.unanswered(shown)]


@needs_prometheus
@beside_prometheus
async def test_a_renamed_metric_or_label_is_named_with_its_panel_and_query(watched: Watched) -> None:
    """What these tests are for. Whatever does not ask for them stays without a complaint."""
    there = await watched.renamed.labels_by_metric()
    found = {query: problems(query, there) for query in OURS}
    said = [problem for query in OURS for problem in found[query]]
    for wanted in (
        "fleet.json, panel 'Under way and waiting': no metric polytone_queue_depth: sum(polytone_queue_depth)",
        "drift.json, panel 'Alarms by signal': no label signal on polytone_drift_alarms_total: sum by (signal) (polyt",
        "drift.json, variable 'signal': no label signal in the answer: polytone_drift_state{",
        "rules.yaml, rule 'PolytoneDrift': no label signal on polytone_drift_state: max by (adapter, version, signal)",
    ):
        assert any(problem.startswith(wanted) for problem in said), said
    asking = {query for query in OURS if "polytone_queue_depth" in query.text or asks_for("signal", query)}
    assert {query for query in OURS if found[query]} == asking


@pytest.mark.parametrize(
    ("text", "legend", "wrong"),
    [
        ("sum by (a) (rate(m[5m])) / on (a) group_left () n", "a", None),
        ("topk(3, m) or vector(0)", "b", None),
        ("sum without (a) (m)", "b", None),
        ('m{c!="1"}', "", "no label c on m"),
        ("sum by (c) (rate(m[5m]))", "", "no label c on m"),
        ("sum without (c) (m)", "", "no label c on m"),
        ("max by (b) (sum by (a) (m))", "", "no label b on m"),
        ("m / on (b) group_left () n", "", "no label b on n"),
        ("m * on (a) group_left (c) n", "", "no label c on n"),
        ("m / ignoring (c) n", "", "no label c on m and n"),
        ("histogram_quantile(0.9, sum by (a) (rate(h_bucket[5m])))", "", "no label le on h_bucket"),
        ("max_over_time(sum(gone)[1h:1m]) and m", "", "no metric gone"),
        ("sum by (a) (m)", "b", "no label b in the answer"),
        ("m / ignoring (b) n", "b", "no label b in the answer"),
        ("histogram_quantile(0.9, h_bucket)", "le", "no label le in the answer"),
    ],
)
def test_what_a_query_names_and_is_not_there_is_found(text: str, legend: str, wrong: str | None) -> None:
    there = {"m": {"a", "b"}, "n": {"a"}, "h_bucket": {"a", "le"}}
    found = problems(Query("here", text, frozenset(filter(None, [legend]))), there)
    assert (found[0] if found else None) == (wrong and f"here: {wrong}: {text}")


@pytest.mark.parametrize(("file", "dashboard"), dashboards().items(), ids=dashboards())
def test_a_dashboard_is_well_formed(file: str, dashboard: dict[str, Any]) -> None:
    names = [variable["name"] for variable in variables(dashboard)]
    assert dashboard["uid"] == f"polytone-{file.removesuffix('.json')}"
    assert dashboard["description"]
    for panel in panels(dashboard):
        where = f"{file}: {panel['title']}"
        assert "Normal: " in panel["description"], where
        assert panel["fieldConfig"]["defaults"]["unit"], where
        assert panel["targets"], where
        for target in panel["targets"]:
            assert set(VARIABLE.findall(target["expr"])) <= {*BUILT_IN, *names}, where
    for name in names:
        assert f"${name}" in " ".join(target["expr"] for panel in panels(dashboard) for target in panel["targets"])


def test_every_panel_and_variable_asks_the_provisioned_source() -> None:
    """By its uid, which a Grafana that already has other sources does not change."""
    (source,) = provisioned("datasources")["datasources"]
    wanted = {"type": source["type"], "uid": source["uid"]}
    for file, dashboard in dashboards().items():
        for asking in (*panels(dashboard), *variables(dashboard)):
            assert asking["datasource"] == wanted, f"{file}: {asking}"
            assert not any("datasource" in target for target in asking.get("targets", ()))
    config = yaml.safe_load((DEPLOYED / "prometheus.yaml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]


def test_ids_are_unique_and_panels_lie_beside_each_other() -> None:
    uids = [dashboard["uid"] for dashboard in dashboards().values()]
    assert len(set(uids)) == len(uids) == 5
    assert len({dashboard["schemaVersion"] for dashboard in dashboards().values()}) == 1
    for file, dashboard in dashboards().items():
        every = dashboard["panels"]
        assert len({panel["id"] for panel in every}) == len(every), file
        assert len({panel["title"] for panel in every}) == len(every), file
        for panel in every:
            assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= COLUMNS, f"{file}: {panel['title']}"
        for one, other in combinations(every, 2):
            assert not overlap(one["gridPos"], other["gridPos"]), f"{file}: {one['title']} and {other['title']}"


def test_a_variable_has_the_name_of_the_label_it_lists() -> None:
    for query in variable_queries():
        (label,) = query.labels
        assert query.where.endswith(f"{label!r}")


@needs_prometheus
def test_promtool_agrees_with_the_configuration(tmp_path: Path) -> None:
    """As it is deployed, but for the key, which lies in the container; then with a key, and the rules it names."""
    for command in (
        ["--syntax-only", str(DEPLOYED / "prometheus.yaml")],
        [str(configure(tmp_path / "prometheus", 8000, "key"))],
    ):
        done = subprocess.run(["promtool", "check", "config", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"SUCCESS: \d+ rules found", done.stdout)


def asks_for(label: str, query: Query) -> bool:
    return bool(re.search(rf"\b{label}\b", query.text)) or label in query.labels


def provisioned(kind: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((GRAFANA / "provisioning" / kind / "polytone.yaml").read_text())
    return content


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )
