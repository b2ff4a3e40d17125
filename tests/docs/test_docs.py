"""The documentation says what the code does: settings, metrics, recipe keys, error codes, modules."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from pydantic import BaseModel

import polytone
from polytone.cli.main import app as command_line
from polytone.contract.manifest import Sampling
from polytone.serve.metrics import Metrics
from polytone.serve.settings import PREFIX, Settings
from polytone.train.recipe import (
    DataSection,
    DriftSection,
    GatesSection,
    LoraSection,
    Recipe,
    TrainingSection,
    read_recipe,
)

ROOT = Path(__file__).parents[2]
PACKAGE = Path(polytone.__file__).parent
SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataSection,
    "lora": LoraSection,
    "training": TrainingSection,
    "drift": DriftSection,
    "gates": GatesSection,
    "sampling": Sampling,
}


def table(page: str) -> dict[str, str]:
    """First column (without backticks) -> the row, for every table row of a page; several names may share a row."""
    rows = {}
    for line in (ROOT / "docs" / page).read_text().splitlines():
        if line.startswith("| `"):
            for name in re.findall(r"`([^`]+)`", line.split("|")[1]):
                rows[name] = line
    return rows


def test_every_setting_is_documented_with_its_default_and_meaning() -> None:
    rows = table("settings.md")
    assert set(rows) == {PREFIX + name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        row = rows[PREFIX + name.upper()]
        assert str(field.description) in row
        assert (f"`{field.default}`" if field.default is not None else "| - |") in row


def test_every_metric_is_documented_with_its_labels() -> None:
    rows = table("metrics.md")
    counted = {}
    for metric in Metrics().registry.collect():
        counted[metric.name + ("_total" if metric.type == "counter" else "")] = metric.type
    assert {name: row.split("|")[2].strip() for name, row in rows.items()} == counted


def recipe_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name in model.model_fields:
        if not prefix and name in SECTIONS:
            yield from recipe_keys(SECTIONS[name], f"{name}.")
        else:
            yield prefix + name


def test_every_recipe_key_is_documented() -> None:
    assert set(table("recipes.md")) == set(recipe_keys(Recipe))


def test_every_error_code_is_documented() -> None:
    raised: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        raised.update(re.findall(r'\bcode="([a-z_]+)"', text))
        for pair in re.findall(r'code=?\s*=\s*"([a-z_]+)" if [^\n]+ else "([a-z_]+)"', text):
            raised.update(pair)
    raised |= {"database_unavailable", "requests_per_minute", "tokens_per_minute"}
    raised |= {"route_not_found", "method_not_allowed", "http_error", "internal_error"}
    documented = {name for name in table("http.md") if re.fullmatch(r"[a-z_]+", name)}
    assert raised <= documented, raised - documented
    assert documented - raised == set()


def test_every_alert_says_what_to_do() -> None:
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]
    headings = re.findall(r"^### (Polytone\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(alerts)


def test_what_a_cluster_is_built_with_is_documented() -> None:
    ray_app = pytest.importorskip("deploy.ray_app", reason="no Ray: make .venv/.cluster", exc_type=ImportError)
    text = (ROOT / "docs" / "cluster.md").read_text()
    assert not [name for name in ray_app.ClusterArgs.model_fields if f"`{name}`" not in text]


def test_every_folder_has_its_line_in_the_structure() -> None:
    """Files say themselves what they are, in their first line."""
    folders = {f"{path.parent.relative_to(PACKAGE)}/" for path in PACKAGE.rglob("*.py")} - {"./"}
    assert {folder for folder in folders if "migrations" not in folder} <= set(table("structure.md"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_every_command_in_the_readme_exists() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    group = typer.main.get_command(command_line)
    seen = 0
    for line in "\n".join(blocks("bash")).splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["make"]:
            assert words[1] in targets
            seen += 1
        if words[:1] == ["polytone"]:
            command: Any = group
            while hasattr(command, "commands"):
                word = words.pop(1)
                assert word in command.commands, line
                command = command.commands[word]
            seen += 1
    assert seen >= 5


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*/recipe.yaml")), ids=lambda path: path.parent.name)
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert read_recipe(path).name == path.parent.name
