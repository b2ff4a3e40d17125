"""Imports go one way: train -> contract, measure <- serve <- deploy, ui -> HTTP; the engine and its plugin alone import
vLLM."""

import ast
from pathlib import Path

import polytone

ROOT = Path(polytone.__file__).parent
SERVER_ROOTS = {"serve/server.py", "cli/server.py"}  # they put the server together, page included


def imports_of(path: Path) -> set[str]:
    """Absolute names of the modules a file imports, function bodies included."""
    package = ["polytone", *path.relative_to(ROOT).parent.parts]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            found.add(".".join([*above, *(node.module or "").split(".")]).strip("."))
    return found


def every_import() -> list[tuple[str, str]]:
    files = [path for path in ROOT.rglob("*.py") if "migrations/versions" not in str(path)]
    return [(str(path.relative_to(ROOT)), name) for path in files for name in imports_of(path)]


def test_contract_imports_only_the_standard_library_and_pydantic() -> None:
    allowed = {"pydantic", "polytone"}
    import sys

    for file, name in every_import():
        if file.startswith("contract/"):
            assert name.split(".")[0] in allowed | set(sys.stdlib_module_names), f"{file} imports {name}"
            assert not name.startswith("polytone.") or name.startswith("polytone.contract"), f"{file} imports {name}"


def test_train_serve_and_ui_do_not_import_each_other() -> None:
    for file, name in every_import():
        folder = file.split("/")[0]
        for other in {"train", "serve", "ui"} - {folder}:
            if folder in {"train", "serve", "ui"} and name.startswith(f"polytone.{other}"):
                assert (file in SERVER_ROOTS, other) == (True, "ui"), f"{file} imports {name}"


def test_measures_know_neither_training_nor_serving_nor_files() -> None:
    allowed = {"numpy", "sklearn"}
    import sys

    for file, name in every_import():
        if file.startswith("measure/"):
            assert name.split(".")[0] in allowed | set(sys.stdlib_module_names), f"{file} imports {name}"


def test_measures_import_heavy_libraries_only_where_they_are_used() -> None:
    for path in (ROOT / "measure").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "sklearn" not in ast.unparse(node), f"{path.name}: {ast.unparse(node)}"


def test_ui_knows_http_only() -> None:
    for file, name in every_import():
        if file.startswith("ui/"):
            assert not name.startswith("polytone") or name.startswith("polytone.ui"), f"{file} imports {name}"


def test_the_cluster_knows_the_server_only() -> None:
    for path in (ROOT.parent / "deploy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polytone"):
                assert str(node.module).startswith(("polytone.serve", "polytone.contract")), f"{path}: {node.module}"


def test_one_machine_does_without_ray() -> None:
    assert not [(file, name) for file, name in every_import() if name.split(".")[0] == "ray"]


def test_only_the_engine_and_its_plugin_import_vllm() -> None:
    files = {file for file, name in every_import() if name.split(".")[0] == "vllm"}
    assert files == {
        "serve/engine/vllm.py",
        "serve/engine/cpu/plugin.py",
        "serve/engine/cpu/lora_layers.py",
        "serve/engine/cpu/logprobs_patch.py",
        "serve/engine/cpu/seed_patch.py",
    }


def test_nothing_is_kept_at_module_level() -> None:
    """No module holds mutable state: only constants in capitals, types, and typer's command groups."""
    for path in ROOT.rglob("*.py"):
        if "migrations" in path.parts:
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                known = {"log", "app", "T", "__version__"}
                allowed = [
                    n for n in names if n.isupper() or n in known or n.endswith("_commands") or is_type(n, node.value)
                ]
                assert names == allowed, f"{path}: {names}"


def is_type(name: str, value: ast.expr) -> bool:
    """A name like `Floats` for an expression like `Annotated[str, ...]` or `A | B`."""
    return name[0].isupper() and isinstance(value, ast.Subscript | ast.BinOp)
