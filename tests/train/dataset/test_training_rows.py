"""Rows to train on: every file that `polytone data check` accepts is read, and bad rows are named."""

import csv
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polytone.cli.main import app
from polytone.contract.errors import InputError
from polytone.contract.rows import Conversation, Preference, Verdict
from polytone.train.dataset.training_rows import holds, read_conversations, read_preferences, read_verdicts

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def refusal(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_conversations(path)
    return caught.value


def test_good_rows_are_read_and_blank_lines_skipped(tmp_path: Path) -> None:
    file = read_conversations(write(tmp_path / "rows.jsonl", json.dumps(GOOD), "", json.dumps(GOOD)))
    assert len(file.rows) == 2
    assert len(file.sha256) == 64


def test_every_bad_row_is_named_with_its_line_and_field(tmp_path: Path) -> None:
    two_users = {"messages": [GOOD["messages"][0], GOOD["messages"][0], GOOD["messages"][1]]}
    blank = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "  "}]}
    path = write(
        tmp_path / "rows.jsonl",
        json.dumps(GOOD),
        "{broken",
        json.dumps(two_users),
        json.dumps(blank),
        json.dumps({"messages": [{"role": "robot", "content": "x"}, GOOD["messages"][1]]}),
        json.dumps({"text": "x"}),
    )
    error = refusal(path)
    assert error.code == "rows_malformed"
    for line, part in (
        (2, "is not JSON"),
        (3, "two turns in a row"),
        (4, "messages.1.content: is empty"),
        (5, "messages.0.role"),
        (6, "has no conversation"),
    ):
        assert any(f":{line}:" in text and part in text for text in error.message.splitlines()), (
            line,
            error.message,
        )
    assert ":1:" not in error.message


def test_only_the_first_twenty_problems_are_listed(tmp_path: Path) -> None:
    error = refusal(write(tmp_path / "rows.jsonl", *["{"] * 25))
    assert "... and 5 more" in error.message


@pytest.mark.parametrize(
    ("content", "code"), [(b"", "file_empty"), (b"\n\n", "file_empty"), (b"\xff\xfe{", "file_not_text")]
)
def test_files_without_rows_are_refused(tmp_path: Path, content: bytes, code: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert refusal(path).code == code


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.jsonl").code == "file_not_found"
    assert refusal(tmp_path).code == "file_not_found"


def test_a_line_separator_inside_a_string_does_not_split_the_row(tmp_path: Path) -> None:
    """str.splitlines() breaks at U+2028, which JSON allows unescaped inside a string."""
    row = json.dumps(
        {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "a\u2028b"}]}, ensure_ascii=False
    )
    assert read_conversations(write(tmp_path / "rows.jsonl", row)).rows[0].messages[1].content == "a\u2028b"


USER, SAID = GOOD["messages"]


def test_verdicts_keep_their_keys_and_are_conversations(tmp_path: Path) -> None:
    row = {"prompt": [USER], "completion": [SAID], "label": False, "completion_id": "chatcmpl-1"}
    read = read_verdicts(write(tmp_path / "rows.jsonl", json.dumps(row))).rows[0]
    assert read.model_dump() == row
    assert read.conversation().as_dicts() == GOOD["messages"]


def test_preferences_keep_both_replies(tmp_path: Path) -> None:
    row = {"prompt": [USER], "chosen": [SAID], "rejected": [{"role": "assistant", "content": "No."}], "id": "1"}
    assert read_preferences(write(tmp_path / "rows.jsonl", json.dumps(row))).rows[0].model_dump() == row


def test_bad_verdicts_and_preferences_are_named_like_bad_conversations(tmp_path: Path) -> None:
    good = {"prompt": [USER], "completion": [SAID], "label": True}
    path = write(
        tmp_path / "rows.jsonl",
        json.dumps({**good, "label": "yes"}),
        json.dumps({**good, "completion": [SAID, USER]}),
        json.dumps({**good, "completion": [USER]}),
        json.dumps({**good, "prompt": [USER, SAID]}),
        json.dumps({**good, "prompt": []}),
        json.dumps(GOOD),
    )
    with pytest.raises(InputError) as caught:
        read_verdicts(path)
    assert caught.value.code == "rows_malformed"
    parts = (
        "label:",
        "completion:",
        "must be the assistant's",
        "two turns in a row",
        "prompt:",
        "is a conversation, not a verdict",
    )
    for line, part in enumerate(parts, start=1):
        assert any(f":{line}:" in text and part in text for text in caught.value.message.splitlines()), (line, part)
    assert '"label": true' in caught.value.message
    with pytest.raises(InputError, match="is a conversation, not a preference"):
        read_preferences(path)


def test_a_byte_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", json.dumps(GOOD))
    path.write_bytes(path.read_bytes() + b'{"a":"\xff"}\n')
    error = refusal(path)
    assert error.code == "rows_malformed"
    assert f"{path}:2: is not UTF-8 text from byte 7" in error.message


def in_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def in_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def in_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write(path, *map(json.dumps, rows))


def in_gzip(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def in_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({"data": rows}))


CONTAINERS = {
    "rows.parquet": in_parquet,
    "rows.csv": in_csv,
    "rows.json": in_json,
    "rows.jsonl": in_lines,
    "rows.jsonl.gz": in_gzip,
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_training_reads_every_container_and_format_that_the_check_accepts(name: str, tmp_path: Path) -> None:
    """`polytone data check good.csv` found nothing wrong; training then refused every row as invalid JSON."""
    path = tmp_path / name
    for row in (
        {"prompt": "Hi", "completion": "Hello."},
        {"instruction": "Hi", "output": "Hello."},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
    ):
        if name == "rows.csv" and "conversations" in row:
            continue
        CONTAINERS[name](path, [row, row])
        assert CliRunner().invoke(app, ["data", "check", str(path)]).exit_code == 0
        file = read_conversations(path)
        assert [one.as_dicts() for one in file.rows] == [GOOD["messages"]] * 2
        assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", CONTAINERS)
def test_verdicts_and_preferences_are_read_from_every_container(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    CONTAINERS[name](path, [{"prompt": "Hi", "completion": "Hello.", "label": label} for label in (True, False)])
    assert [row.label for row in read_verdicts(path).rows] == [True, False]
    assert (holds(path, Verdict), holds(path, Conversation)) == (True, False)
    CONTAINERS[name](path, [{"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}])
    assert read_preferences(path).rows[0].rejected[0].content == "What?"
    assert holds(path, Preference)


def test_the_check_refuses_a_label_that_training_refuses(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", json.dumps({"prompt": [USER], "completion": [SAID], "label": "yes"}))
    result = CliRunner().invoke(app, ["data", "check", str(path)])
    assert result.exit_code == 1
    assert "label: Input should be a valid boolean" in result.stdout


def test_a_missing_file_is_told_with_its_folder_and_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", json.dumps(GOOD))
    message = refusal(tmp_path / "trian.jsonl").message
    assert f"no such file in {tmp_path}. Did you mean train.jsonl?" in message


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("rows.xlsx", b"PK\x03\x04", "Excel is not read. Save the sheet as CSV"),
        ("rows.zip", b"PK\x03\x04", "is a zip archive"),
        ("rows.jsonl.gz", b"\x1f\x8b\x08 and no more", "is a damaged gzip file"),
    ],
)
def test_files_of_another_kind_are_refused_in_words(name: str, content: bytes, part: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    error = refusal(tmp_path / name)
    assert (error.code, error.exit_code) == ("file_unreadable", 2)
    assert part in error.message
