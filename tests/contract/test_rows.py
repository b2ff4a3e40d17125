"""Dataset rows: what is read, and how bad rows are named."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytone.contract.errors import InputError
from polytone.contract.rows import Conversation, read_conversations, read_preferences, read_verdicts

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
        (2, "Invalid JSON"),
        (3, "two turns in a row"),
        (4, "messages.1.content: is empty"),
        (5, "messages.0.role"),
        (6, "messages: Field required"),
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
    ("content", "code"), [(b"", "file_empty"), (b"\n\n", "file_empty"), (b'{"a":"\xff"}', "file_not_text")]
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
        "prompt: Field required",
    )
    for line, part in enumerate(parts, start=1):
        assert any(f":{line}:" in text and part in text for text in caught.value.message.splitlines()), (line, part)
    assert '"label": true' in caught.value.message
    with pytest.raises(InputError, match="rejected: Field required"):
        read_preferences(path)


@given(st.lists(st.text().filter(str.strip), min_size=1, max_size=6))
def test_alternating_turns_survive_a_round_trip(texts: list[str]) -> None:
    messages = [{"role": role, "content": text} for text in texts for role in ("user", "assistant")]
    conversation = Conversation.model_validate({"messages": messages})
    assert Conversation.model_validate_json(conversation.model_dump_json()).as_dicts() == messages
