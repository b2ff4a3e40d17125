"""The commands of `base`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polytone.cli.main import app
from polytone.contract.base import load_base
from polytone.contract.errors import NotFoundError, UnavailableError
from polytone.contract.home import Home
from tests.support.adapters import make_base


def test_prepared_bases_are_listed(tmp_path: Path) -> None:
    base = make_base(Home(tmp_path))
    line = CliRunner().invoke(app, ["base", "list", "--home", str(tmp_path)]).stdout.splitlines()[1]
    assert line.split()[:3] == [base.id, base.digest[:12], str(base.max_length)]
    done = CliRunner().invoke(app, ["base", "list", "--home", str(tmp_path), "--json"])
    assert [one["id"] for one in json.loads(done.stdout)["bases"]] == [base.id]


def test_a_base_that_is_missing_is_named_in_the_command_that_prepares_it(tmp_path: Path) -> None:
    """A recipe with `base: mistral-7b` was told to run `polytone base prepare`, which prepares another base."""
    with pytest.raises(NotFoundError, match=r"polytone base prepare mistral-7b,"):
        load_base(Home(tmp_path), "mistral-7b")


@pytest.mark.slow
def test_mistral_7b_is_known_by_its_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guides say `polytone base prepare mistral-7b`; the hub has no model of that name."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    done = CliRunner().invoke(app, ["base", "prepare", "mistral-7b", "--home", str(tmp_path)])
    assert isinstance(done.exception, UnavailableError)
    assert "'mistralai/Mistral-7B-Instruct-v0.3'" in done.exception.message
