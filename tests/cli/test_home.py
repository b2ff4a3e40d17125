"""One home for every command: from the command line, the environment, the settings file, else the default."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.core import TyperArgument
from typer.testing import CliRunner

from polytone.cli.main import app
from polytone.contract.errors import InputError
from polytone.serve.settings import read_home, read_settings

VERSION = "acme@0123456789ab"


def commands(group: Any, *path: str) -> Iterator[list[str]]:
    """Every command that has --home, with something for each of its required arguments and options."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)
        elif any(parameter.name == "home" for parameter in command.params):
            words = [*path, name]
            for parameter in command.params:
                if parameter.required:
                    value = "10" if parameter.min is not None else VERSION
                    words += [value] if isinstance(parameter, TyperArgument) else [parameter.opts[0], f"{value}.out"]
            yield words


WITH_HOME = list(commands(typer.main.get_command(app)))


def file_in_place_of_a_home(path: Path) -> Path:
    path.write_text("not a folder")
    return path


def said(words: list[str]) -> str:
    """The refusal of a command, which is an InputError."""
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, InputError), (done.exception, done.output)
    return done.exception.message


def test_there_are_commands_of_training_and_of_serving() -> None:
    names = {" ".join(words[:2]) for words in WITH_HOME}
    assert {"base prepare", f"train {VERSION}", "data check", "adapters list", "keys list", "serve"} <= names


@pytest.mark.parametrize("words", WITH_HOME, ids=lambda words: " ".join(words[:2]))
def test_every_command_takes_its_home_from_the_same_places(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The home of a settings file held for `serve` and `adapters` but not for `train`, which then wrote where the
    server does not look. Each place has a file where a folder should be: the refusal names the one that counted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POLYTONE_HOME", raising=False)
    places = {name: file_in_place_of_a_home(tmp_path / name) for name in ("line", "environment", "file", ".polytone")}
    assert str(places[".polytone"]) in said(words)
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"home: {places['file']}\n")
    monkeypatch.setenv("POLYTONE_SETTINGS", str(settings))
    assert str(places["file"]) in said(words)
    monkeypatch.setenv("POLYTONE_HOME", str(places["environment"]))
    assert str(places["environment"]) in said(words)
    assert str(places["line"]) in said([*words, "--home", str(places["line"])])


def test_an_empty_variable_counts_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYTONE_HOME", "")
    assert read_home().root == read_settings().paths().root == tmp_path / ".polytone"


def test_training_is_not_stopped_by_a_server_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTONE_PORT", "none")
    assert read_home(tmp_path).root == tmp_path


def test_a_key_in_the_environment_is_no_unknown_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """`push` reads its key from POLYTONE_KEY, and every command that reads settings refused that variable."""
    monkeypatch.setenv("POLYTONE_KEY", "pt-admin-1")
    assert read_settings().port == 8000


@pytest.mark.parametrize("content", ["home: 5\n", "home: [a]\n", "- home\n", "hoem: x\n", "home: [\n"])
def test_a_settings_file_that_cannot_be_used_is_named(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POLYTONE_HOME", raising=False)
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    monkeypatch.setenv("POLYTONE_SETTINGS", str(path))
    for read in (read_home, read_settings):
        with pytest.raises(InputError) as refused:
            read()
        assert refused.value.code == "settings_invalid"
