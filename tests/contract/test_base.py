"""The description of a prepared base: what older ones say, and what is wrong with a damaged one."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from polytone.contract.base import base_folder, load_base
from polytone.contract.errors import CheckError
from polytone.contract.home import Home
from tests.support.adapters import make_base


def test_the_time_in_an_older_base_is_read(tmp_path: Path) -> None:
    """base.json once held a text where the other manifests hold a time."""
    home = Home(tmp_path)
    change_base(home, created="2026-11-30T12:00:00+00:00")
    assert load_base(home, "tiny").created == datetime(2026, 11, 30, 12, tzinfo=UTC)


def test_a_damaged_base_is_told_which_field(tmp_path: Path) -> None:
    home = Home(tmp_path)
    change_base(home, max_length="long")
    with pytest.raises(CheckError, match=r"base\.json: max_length: .* Prepare the base again") as caught:
        load_base(home, "tiny")
    assert caught.value.code == "base_damaged"


def change_base(home: Home, **changes: object) -> None:
    path = base_folder(home, make_base(home).id) / "base.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
