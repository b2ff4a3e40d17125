"""Exit codes, and homes that are odd: whatever is wrong, there is one message and no traceback."""

import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polytone.cli.exit_codes import ExitCode
from polytone.cli.main import app, main
from polytone.contract import errors


def garbage(home: Path) -> None:
    (home / "polytone.db").write_bytes(b"not a database " * 1000)


def folder_for_a_database(home: Path) -> None:
    (home / "polytone.db").mkdir()


def from_a_newer_polytone(home: Path) -> None:
    assert CliRunner().invoke(app, ["keys", "create", "--name", "bot", "--home", str(home)]).exit_code == 0
    with sqlite3.connect(home / "polytone.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def files_for_folders(home: Path) -> None:
    for name in ("bases", "adapters", "runs", "evaluations"):
        (home / name).write_text("")


def half_a_version(home: Path) -> None:
    folder = home / "adapters" / "acme" / "0123456789ab"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{")


def base_that_is_no_text(home: Path) -> None:
    folder = home / "bases" / "smollm2-135m-instruct"
    folder.mkdir(parents=True)
    (folder / "base.json").write_bytes(b"\xff\xfe")


def link_to_itself(home: Path) -> None:
    home.rmdir()
    home.symlink_to(home)


REFUSED = [
    *[(garbage, words, "database_damaged") for words in ("adapters list", "keys create --name other", "drift")],
    *[(folder_for_a_database, words, "database_unavailable") for words in ("adapters list", "keys list")],
    *[(from_a_newer_polytone, words, "database_newer") for words in ("adapters list", "keys list", "drift")],
    (files_for_folders, "base prepare", "disk_error"),
    (files_for_folders, "adapters publish acme@0123456789ab", "version_not_found"),
    (half_a_version, "adapters publish acme@0123456789ab", "files_missing"),
    *[(base_that_is_no_text, words, "base_damaged") for words in ("base list", "base prepare")],
    *[(link_to_itself, words, "settings_invalid") for words in ("adapters list", "base list", "keys list")],
]


def exit_of(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of the `polytone` command, which prints every refusal."""
    monkeypatch.setattr(sys, "argv", ["polytone", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(("make_odd", "words", "code"), REFUSED, ids=lambda value: getattr(value, "__name__", value))
def test_an_odd_home_is_refused_in_a_message(
    make_odd: Callable[[Path], None],
    words: str,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    make_odd(home)
    exit_code = exit_of(monkeypatch, *words.split(), "--home", str(home), "--json")
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == code, error
    assert exit_code in {ExitCode.FAILED, ExitCode.BAD_INPUT}
    assert str(home) in error["message"] or "acme@" in error["message"]


def test_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path)]
    assert exit_of(monkeypatch, "--version") == ExitCode.DONE
    assert exit_of(monkeypatch, "adapters", "list", *home) == ExitCode.DONE
    assert exit_of(monkeypatch, "adapters", "list", "--nosuch", *home) == ExitCode.BAD_INPUT
    assert exit_of(monkeypatch, "nosuch") == ExitCode.BAD_INPUT
    assert exit_of(monkeypatch, "adapters", "promote", "acme@0123456789ab", *home) == ExitCode.BAD_INPUT
    assert "error: acme@0123456789ab is not published." in capsys.readouterr().err
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    assert exit_of(monkeypatch, "data", "check", str(rows), *home) == ExitCode.FAILED


def test_errors_carry_one_of_the_exit_codes() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PolytoneError)
    ]
    assert {kind.exit_code for kind in kinds} == {ExitCode.FAILED, ExitCode.BAD_INPUT}
