"""Splitting conversations: rows that belong together stay together, and nothing leaks."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bench.conversations import line, plant
from bench.data import write
from polytone.cli.main import app
from polytone.contract.errors import CheckError, InputError

THINGS = ["kettle", "lamp", "mug", "rug", "desk", "tent", "stove", "chair", "clock", "radio"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def split(folder: Path, rows: list[str], *more: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(rows) + "\n")
    targets = folder / "train.jsonl", folder / "held_out.jsonl"
    result = run("split", path, "--out-train", targets[0], "--out-held-out", targets[1], "--force", *more)
    assert result.exit_code == 0, result.exception
    learned, measured = ([json.loads(row) for row in target.read_text().splitlines()] for target in targets)
    assert len(learned) + len(measured) == len(rows)
    return learned, measured


def conversation(thing: str, number: int, **keys: str) -> str:
    return line([f"Order {number}: what is the {thing} made of, please?", f"The {thing} is made of steel."], **keys)


ROWS = [conversation(thing, 100 + number) for number, thing in enumerate(THINGS * 4)]


def test_a_tenth_is_held_out_by_a_seed(tmp_path: Path) -> None:
    first, again = split(tmp_path, ROWS), split(tmp_path, ROWS)
    assert first == again
    assert len(first[1]) == 4
    assert split(tmp_path, ROWS, "--seed", "1")[1] != first[1]
    assert len(split(tmp_path, ROWS, "--share", "0.25")[1]) == 10


def test_a_conversation_is_never_divided(tmp_path: Path) -> None:
    rows = [conversation(thing, number, conversation_id=thing) for number, thing in enumerate(THINGS * 4)]
    learned, measured = split(tmp_path, rows, "--share", "0.3")
    sides = [{row["conversation_id"] for row in side} for side in (learned, measured)]
    assert sides[0].isdisjoint(sides[1])
    assert len(sides[1]) == 3


def test_rows_that_begin_with_the_same_question_stay_together(tmp_path: Path) -> None:
    rows = [
        line([f"What is the {thing} of order {number} made of?", reply])
        for number, thing in enumerate(THINGS)
        for reply in ("Steel.", "Wood, all of it.")
    ]
    learned, measured = split(tmp_path, rows, "--share", "0.2")
    questions = [{row["messages"][0]["content"] for row in side} for side in (learned, measured)]
    assert questions[0].isdisjoint(questions[1])
    assert len(measured) == 4


@pytest.mark.parametrize("seed", ["0", "1"])
@pytest.mark.slow
def test_the_check_finds_no_leak_in_a_split_of_edited_copies(seed: str, tmp_path: Path) -> None:
    planted = plant(seed=11)
    path, _ = write(tmp_path, planted)
    clean = [row for number, row in enumerate(path.read_text().splitlines(), start=1) if number not in planted.broken]
    _, measured = split(tmp_path, clean[:2500], "--seed", seed)
    assert len(measured) == 250
    report = json.loads(
        run("check", tmp_path / "train.jsonl", "--held-out", tmp_path / "held_out.jsonl", "--json").stdout
    )
    assert report["counts"].get("leak", 0) == 0
    assert report["counts"]["near_duplicate"] > 10


def test_verdicts_keep_their_form(tmp_path: Path) -> None:
    rows = [
        json.dumps({"prompt": f"Is {thing} {number} here today?", "completion": "Yes.", "label": label, "id": thing})
        for number, thing in enumerate(THINGS)
        for label in (True, False)
    ]
    learned, measured = split(tmp_path, rows)
    assert [(row["label"], row["id"]) for row in measured] == [(True, measured[0]["id"]), (False, measured[0]["id"])]
    assert learned[0]["completion"] == [{"role": "assistant", "content": "Yes."}]


def test_the_result_is_told_in_words_and_as_json(tmp_path: Path) -> None:
    split(tmp_path, ROWS)
    targets = ("--out-train", tmp_path / "a.jsonl", "--out-held-out", tmp_path / "b.jsonl")
    assert f"{tmp_path / 'b.jsonl'}: 4 rows (10%)" in run("split", tmp_path / "rows.jsonl", *targets).stdout
    document = json.loads(run("split", tmp_path / "rows.jsonl", *targets, "--force", "--json").stdout)
    assert (document["train"], document["held_out"], document["groups"]) == (36, 4, 40)


def test_what_cannot_be_split_is_refused_and_nothing_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    targets = ("--out-train", tmp_path / "a.jsonl", "--out-held-out", tmp_path / "b.jsonl")
    path.write_text(f"{ROWS[0]}\n{ROWS[0]}\n")
    alike = run("split", path, *targets).exception
    assert isinstance(alike, CheckError)
    assert (alike.code, alike.exit_code) == ("too_few_rows", 1)
    path.write_text(f"{ROWS[0]}\n{{broken\n{ROWS[1]}\n")
    broken = run("split", path, *targets).exception
    assert isinstance(broken, InputError)
    assert broken.code == "rows_malformed"
    assert f"{path}:2:" in broken.message
    same = run("split", path, "--out-train", path, "--out-held-out", tmp_path / "b.jsonl", "--force").exception
    assert isinstance(same, InputError)
    assert same.code == "output_is_input"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["rows.jsonl"]
