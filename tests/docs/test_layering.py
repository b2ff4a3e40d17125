"""Who may import whom: the contracts of `[tool.importlinter]` in pyproject.toml, and what they cannot say."""

import ast
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import polytone

ROOT = Path(polytone.__file__).parent


def test_every_import_follows_the_contracts() -> None:
    """In a process of its own: import-linter turns off every logger there is."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    checked = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("package", "libraries"),
    [("polytone.contract", {"pydantic", "safetensors"}), ("polytone.measure", {"numpy", "sklearn"})],
)
def test_the_shared_packages_need_few_libraries(package: str, libraries: set[str]) -> None:
    graph = grimp.build_graph("polytone", include_external_packages=True, cache_dir=None)
    modules = {package, *graph.find_descendants(package)}
    imported = set().union(*(graph.find_modules_directly_imported_by(module) for module in modules))
    external = {name for name in imported - modules if name != "polytone" and name not in sys.stdlib_module_names}
    assert external <= libraries


def test_measures_import_heavy_libraries_only_where_they_are_used() -> None:
    for path in (ROOT / "measure").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "sklearn" not in ast.unparse(node), f"{path.name}: {ast.unparse(node)}"


def test_modules_hold_no_state() -> None:
    """Assignments at module level are constants in capitals, types, loggers and typer's command groups."""
    for path in ROOT.rglob("*.py"):
        if "migrations" in path.parts:
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                assert names == [name for name in names if is_constant(name, node.value)], f"{path}: {names}"


def is_constant(name: str, value: ast.expr) -> bool:
    exempt = {"log", "app", "T", "__version__"}
    return name.isupper() or name in exempt or name.endswith("_commands") or is_type(name, value)


def is_type(name: str, value: ast.expr) -> bool:
    """A name like `Floats` for an expression like `Annotated[str, ...]` or `A | B`."""
    return name[0].isupper() and isinstance(value, ast.Subscript | ast.BinOp)
