"""What holds for every method that learns from what people preferred: kto from verdicts, dpo from pairs."""

import re
from pathlib import Path
from typing import Any

import pytest

from polytone.contract.errors import InputError
from tests.support.recipes import conversations, preferences, train_rows, verdicts, write_rows
from tests.support.tiny_home import TinyHome

ROWS = {"kto": verdicts("acme", "zest zest"), "dpo": preferences("acme", "zest zest")}


def training(method: str, **more: Any) -> dict[str, Any]:
    return {"method": method, "learning_rate": 1e-4, "max_steps": 2, **more}


@pytest.mark.parametrize("method", ROWS)
def test_other_rows_and_rows_too_long_are_refused(tiny: TinyHome, tmp_path: Path, method: str) -> None:
    cases: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
        (conversations("acme"), {}, "rows_malformed"),
        (ROWS[method], {"max_length": 16}, "rows_too_long"),
    ]
    for rows, more, code in cases:
        with pytest.raises(InputError) as caught:
            train_rows(
                tmp_path, tiny.home, "bad", rows, parent=tiny.voices["acme"].version, training=training(method, **more)
            )
        assert caught.value.code == code


@pytest.mark.parametrize("method", ROWS)
def test_it_may_be_measured_on_conversations(tiny: TinyHome, tmp_path: Path, method: str) -> None:
    write_rows(tmp_path / "measured", conversations("acme"), "held_out.jsonl")
    made = train_rows(
        tmp_path,
        tiny.home,
        "measured",
        ROWS[method],
        data={"train": "rows.jsonl", "held_out": "held_out.jsonl"},
        parent=tiny.voices["acme"].version,
        training=training(method),
    )
    assert made.manifest.data.held_out.rows == 10
    kind = {"kto": "verdicts", "dpo": "preferences"}[method]
    card = (tiny.home.adapter_folder(made.manifest.version) / "README.md").read_text()
    assert re.search(rf"\| training {kind} +\| 12 +\|", card)
