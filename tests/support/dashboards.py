"""What dashboards and rules ask of Prometheus, and which of the metrics and labels they name are not there."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser as promql
import yaml

from .prometheus import DEPLOYED

GRAFANA = DEPLOYED.parent / "grafana"
BUILT_IN = {"__rate_interval": "1m", "__range": "1h"}  # Grafana's own variables, as a short look at it would set them
VARIABLE = re.compile(r"\$(\w+)")
LABEL_VALUES = re.compile(r"label_values\((.+), *(\w+)\)")
SETS = ("and", "unless")

Labels = dict[str, set[str]]


@dataclass(frozen=True)
class Query:
    """Something that is asked of Prometheus: where it stands, and the labels that are expected of its answer."""

    where: str
    text: str
    labels: frozenset[str] = frozenset()

    @property
    def filled(self) -> str:
        """With every variable replaced: all voices, all versions, a short time."""
        return VARIABLE.sub(lambda match: BUILT_IN.get(match[1], ".*"), self.text)

    @property
    def selectors(self) -> list[promql.VectorSelector]:
        return selectors_of(promql.parse(self.filled))

    @property
    def engines_own(self) -> bool:
        """Whether it is about what the engine counts, which only a real one does."""
        return any(name_of(selector).startswith("vllm:") for selector in self.selectors)


def dashboards() -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that show something."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def variables(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = dashboard.get("templating", {}).get("list", [])
    return found


def panel_queries() -> Iterator[Query]:
    for file, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                legend = frozenset(re.findall(r"{{ *(\w+) *}}", target.get("legendFormat", "")))
                yield Query(f"{file}, panel {panel['title']!r}", target["expr"], legend)


def variable_queries() -> Iterator[Query]:
    """What `label_values(selector, label)` asks: the selector, and the label of what it finds."""
    for file, dashboard in dashboards().items():
        for variable in variables(dashboard):
            match = LABEL_VALUES.fullmatch(variable["query"])
            assert match is not None, f"{file}, variable {variable['name']}: {variable['query']}"
            yield Query(f"{file}, variable {variable['name']!r}", match[1], frozenset({match[2]}))


def rule_queries() -> Iterator[Query]:
    for group in yaml.safe_load((DEPLOYED / "rules.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            texts = " ".join(rule.get("annotations", {}).values())
            labels = frozenset(re.findall(r"\$labels\.(\w+)", texts))
            yield Query(f"rules.yaml, rule {rule.get('alert') or rule['record']!r}", rule["expr"], labels)


def queries() -> list[Query]:
    return [*panel_queries(), *variable_queries(), *rule_queries()]


def problems(query: Query, there: Labels) -> list[str]:
    """Every metric and label that the query names and that is not `there`, with the query and where it stands."""
    missing: list[str] = []
    labels = labels_of(promql.parse(query.filled), there, missing)
    if labels is not None:
        missing += [f"no label {label} in the answer" for label in sorted(query.labels - labels)]
    return [f"{query.where}: {one}: {query.text}" for one in dict.fromkeys(missing)]


def labels_of(expr: promql.Expr, there: Labels, missing: list[str]) -> set[str] | None:
    """The labels of what an expression gives, None where its metric is not `there`; adds what is not to `missing`."""
    labels: set[str] | None = set()
    match expr:
        case promql.VectorSelector():
            labels = labels_selected(expr, there, missing)
        case promql.MatrixSelector():
            labels = labels_selected(expr.vector_selector, there, missing)
        case promql.Call():
            labels = labels_called(expr, there, missing)
        case promql.AggregateExpr():
            labels = labels_aggregated(expr, there, missing)
        case promql.BinaryExpr():
            labels = labels_joined(expr, there, missing)
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            labels = labels_of(expr.expr, there, missing)
        case _:
            assert isinstance(expr, promql.NumberLiteral | promql.StringLiteral), f"{type(expr)}: what labels has it?"
    return labels


def labels_selected(selector: promql.VectorSelector, there: Labels, missing: list[str]) -> set[str] | None:
    name = name_of(selector)
    if name not in there:
        missing.append(f"no metric {name}")
        return None
    check([matcher.name for matcher in selector.matchers.matchers], there[name], selector, missing)
    return there[name]


def labels_called(call: promql.Call, there: Labels, missing: list[str]) -> set[str] | None:
    given = [labels_of(argument, there, missing) for argument in call.args]
    labels = None if None in given else set().union(*(one for one in given if one is not None))
    match call.func.name:
        case "histogram_quantile":
            check(["le"], labels, call, missing)
            return labels and labels - {"le"}
        case "absent" | "vector" | "time" | "scalar":
            return set()
        case "label_replace" | "label_join" | "absent_over_time":
            raise AssertionError(f"{call.func.name}: what labels has it?")
    return labels


def labels_aggregated(aggregate: promql.AggregateExpr, there: Labels, missing: list[str]) -> set[str] | None:
    labels = labels_of(aggregate.expr, there, missing)
    named = set(aggregate.modifier.labels) if aggregate.modifier else set()
    check(named, labels, aggregate.expr, missing)
    if str(aggregate.op) in ("topk", "bottomk"):
        return labels
    if aggregate.modifier is not None and aggregate.modifier.type == promql.AggModifierType.Without:
        return labels and labels - named
    return named


def labels_joined(binary: promql.BinaryExpr, there: Labels, missing: list[str]) -> set[str] | None:
    left, right = labels_of(binary.lhs, there, missing), labels_of(binary.rhs, there, missing)
    matching = binary.modifier.matching if binary.modifier else None
    on = matching is not None and matching.type == promql.LabelModifierType.Include
    if matching is not None and on:
        check(matching.labels, left, binary.lhs, missing)
        check(matching.labels, right, binary.rhs, missing)
    if left is None or right is None:
        return None
    if matching is not None and not on:  # one side may have more than the other
        check(matching.labels, left | right, binary, missing)
    if str(binary.op) in SETS:
        return left
    if str(binary.op) == "or" or matching is None:
        return left | right  # a number on one side has none, and two vectors without `on` have the same
    assert binary.modifier is not None
    brought = set(binary.modifier.group_labels or ())
    if binary.modifier.card == promql.VectorMatchCardinality.ManyToOne:
        check(brought, right, binary.rhs, missing)
        return left | brought
    if binary.modifier.card == promql.VectorMatchCardinality.OneToMany:
        check(brought, left, binary.lhs, missing)
        return right | brought
    return left & set(matching.labels) if on else left - set(matching.labels)


def check(named: Any, labels: set[str] | None, of: promql.Expr, missing: list[str]) -> None:
    if labels is not None and (unknown := sorted(set(named) - labels)):
        names = " and ".join(dict.fromkeys(name_of(selector) for selector in selectors_of(of)))
        missing += [f"no label {label} on {names}" for label in unknown]


def selectors_of(expr: promql.Expr) -> list[promql.VectorSelector]:
    found: list[promql.VectorSelector] = []

    def note(node: promql.Expr) -> None:
        if isinstance(node, promql.VectorSelector):
            found.append(node)

    promql.walk(expr, note)
    return found


def name_of(selector: promql.VectorSelector) -> str:
    assert selector.name is not None, f"{selector} names no metric"
    return selector.name
