"""The alert rules name metrics and labels that exist, and alarm when they should and only then."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Counter, Histogram

from polytone.serve.metrics import Metrics

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"


def exported() -> dict[str, set[str]]:
    """Every series that a server exports -> its labels."""
    found: dict[str, set[str]] = {}
    for metric in vars(Metrics()).values():
        labels = set(getattr(metric, "_labelnames", ()))
        if isinstance(metric, Counter):
            found[f"{metric._name}_total"] = labels
        elif isinstance(metric, Histogram):
            found |= {f"{metric._name}_{part}": labels for part in ("count", "sum")}
            found[f"{metric._name}_bucket"] = labels | {"le"}
        elif hasattr(metric, "_name"):
            found[metric._name] = labels
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"] for rule in group["rules"]]


def test_every_rule_names_series_and_labels_that_exist() -> None:
    series = exported()
    asked = 0
    for rule in rules():
        for name, _, braces in re.findall(r"\b(polytone_\w+)(\{([^}]*)\})?", rule["expr"]):
            assert name in series, f"{rule.get('alert')}: {name}"
            for label in re.findall(r"(\w+)\s*[=!]~?", braces):
                assert label in series[name], f"{rule.get('alert')}: {name}{{{label}}}"
            asked += 1
        for name in re.findall(r"(polytone_\w+)(?=[^:\w])", rule.get("annotations", {}).get("description", "")):
            assert name in series
    assert asked > 15


def test_every_alert_says_what_to_do() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert set(rule["annotations"]) == {"summary", "description"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not here (Debian: prometheus)")
@pytest.mark.parametrize(
    "command", [("check", "rules", "rules.yaml"), ("test", "rules", "rules_test.yaml")], ids=" ".join
)
def test_promtool_agrees(command: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *command], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
