"""What a check says of files of conversations, and what cleaning makes of them."""

import csv
import importlib.util
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bench.conversations import Planted, line, plant
from bench.data import BARS, FALSE_BAR, false_copies, recall, write
from polytone.cli.main import app
from polytone.contract.base import Base, Quantization
from polytone.contract.errors import CheckError, InputError, NotFoundError
from polytone.contract.files import write_together
from polytone.train.dataset.duplicates import find_copies
from polytone.train.dataset.encoding import damage
from polytone.train.dataset.findings import Kind
from polytone.train.dataset.overlap import common_words
from polytone.train.dataset.personal import find_personal, masked

ASKED = "My kettle has not arrived yet, can you tell me where it is?"
SAID = "I am sorry to hear that, it left our depot on Monday and should be with you soon."
GOOD = line([ASKED, SAID])
OTHER = line(["Which of your lamps go with a dark green wall?", "The brass one looks fine on green, and on any wood."])


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def check(*arguments: str | Path) -> dict[str, Any]:
    result = run("check", *arguments, "--json")
    assert result.exit_code in (0, 1), result.exception
    return dict(json.loads(result.stdout))


def lines(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def kinds(report: dict[str, Any]) -> list[tuple[int, str]]:
    return [(one["line"], one["kind"]) for one in report["findings"]]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant(seed=7)


@pytest.fixture(scope="module")
def checked(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    train, held_out = write(tmp_path_factory.mktemp("planted"), planted)
    return check(train, "--held-out", held_out)


@pytest.mark.slow
def test_planted_faults_are_found(planted: Planted, checked: dict[str, Any]) -> None:
    assert (len(planted.near), len(planted.broken), len(planted.personal), len(planted.leaked)) == (500, 100, 50, 40)
    shares = recall(planted, checked)
    assert {what: share for what, share in shares.items() if share < BARS[what]} == {}


@pytest.mark.slow
def test_clean_rows_are_seldom_called_copies(planted: Planted, checked: dict[str, Any]) -> None:
    assert len(false_copies(planted, checked)) < FALSE_BAR * len(planted.clean())
    leaks = {one["line"] for one in checked["findings"] if one["kind"] == "leak"}
    assert len(leaks - planted.leaked) < FALSE_BAR * len(planted.clean())


@pytest.mark.slow
def test_every_finding_says_where_and_what(checked: dict[str, Any]) -> None:
    for one in checked["findings"]:
        assert one["file"].endswith((".jsonl",))
        assert one["line"] >= 1
        assert one["detail"]
        assert (one["copies"] is not None) == (
            one["kind"] in ("exact_duplicate", "near_duplicate", "leak", "contradiction")
        )


def test_broken_rows_are_named_by_line_and_kind_and_fail_the_check(tmp_path: Path) -> None:
    user, assistant = json.loads(GOOD)["messages"]
    path = lines(
        tmp_path / "rows.jsonl",
        GOOD,
        GOOD[:-5],
        json.dumps({"text": "hello"}),
        json.dumps({"messages": [user, {**assistant, "content": "  "}]}),
        json.dumps({"messages": [user]}),
        json.dumps({"messages": [assistant, user]}),
        json.dumps({"messages": [{**user, "content": None}, assistant]}),
        json.dumps({"messages": "hello"}),
        "",
        "[]",
    )
    report = check(path)
    assert kinds(report) == [
        (2, "unreadable"),
        (3, "malformed"),
        (4, "empty"),
        (5, "one_sided"),
        (6, "role_order"),
        (7, "malformed"),
        (8, "malformed"),
        (10, "unreadable"),
    ]
    assert (report["rows"], report["usable"], report["passed"]) == (9, 1, False)
    assert run("check", path).exit_code == 1
    assert run("check", lines(tmp_path / "good.jsonl", GOOD)).exit_code == 0


def test_bytes_that_are_not_utf8_are_a_finding_on_their_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(f"{GOOD}\n".encode() + line(["caf\u00e9?", "Yes."]).encode("latin-1") + f"\n{OTHER}\n".encode())
    assert kinds(check(path)) == [(2, "unreadable")]


ODD = [
    {"messages": ["a", "b"]},
    {"messages": [{"role": ["x"], "content": "a"}, {"role": {"y": 1}, "content": "b"}]},
    {"messages": [[1], [2]]},
    {"messages": None},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": "ok"},
        ]
    },
    {"messages": [{"role": "user", "content": "half \ud83d"}, {"role": "assistant", "content": "ok"}]},
    {"\ud83d": 1},
    {"conversations": [{"from": None, "value": "x"}, {"from": "gpt", "value": 3}]},
    {"instruction": None, "output": 3},
    {"prompt": {"a": 1}, "completion": "x"},
    {"prompt": "a question", "chosen": "x", "rejected": None},
    {"prompt": [], "completion": []},
    "text",
    None,
    1e999,
]


@pytest.mark.parametrize("row", ODD, ids=repr)
def test_whatever_a_row_holds_it_is_a_finding_and_no_crash(row: object, tmp_path: Path) -> None:
    report = check(lines(tmp_path / "rows.jsonl", GOOD, json.dumps(row)))
    assert {one["line"] for one in report["findings"]} == {2}
    assert report["usable"] == 1
    assert run("clean", tmp_path / "rows.jsonl", "--out", tmp_path / "out.jsonl").exit_code == 0
    assert records(tmp_path / "out.jsonl") == [json.loads(GOOD)]


SHAPES: dict[str, dict[str, Any]] = {
    "messages": json.loads(GOOD),
    "sharegpt": {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}]},
    "alpaca": {"instruction": ASKED, "input": "Order 1188", "output": SAID},
    "prompt_completion": {"prompt": ASKED, "completion": SAID},
    "verdict": {
        "prompt": json.loads(GOOD)["messages"][:1],
        "completion": json.loads(GOOD)["messages"][1:],
        "label": True,
    },
    "preference": {
        "prompt": json.loads(GOOD)["messages"][:1],
        "chosen": json.loads(GOOD)["messages"][1:],
        "rejected": [{"role": "assistant", "content": "No idea."}],
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_format_is_recognised(name: str, tmp_path: Path) -> None:
    report = check(lines(tmp_path / "rows.jsonl", json.dumps(SHAPES[name])))
    assert report["files"][0]["formats"] == {name: 1}
    assert report["passed"]


@pytest.mark.parametrize("ending", ["jsonl", "json", "data.json", "csv", "parquet"])
def test_every_container_holds_the_same_rows(ending: str, tmp_path: Path) -> None:
    rows = [
        SHAPES["prompt_completion"],
        {"prompt": "", "completion": SAID},
        {"prompt": "[1, 2] and so on?", "completion": "Fine."},
    ]
    report = check(contained(tmp_path / f"rows.{ending}", rows))
    assert (report["rows"], report["usable"]) == (3, 2)
    assert kinds(report) == [(2, "empty")]


def contained(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps({"data": rows} if ".data" in path.name else rows))
    else:
        lines(path, *map(json.dumps, rows))
    return path


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("rows.json", b"{broken", "file_unreadable"),
        ("rows.parquet", b"PAR1 and no more", "file_unreadable"),
        ("rows.csv", b"prompt,completion\n\xff\xfa,b\n", "file_not_text"),
        ("rows.jsonl", b"\n\n", "file_empty"),
        ("rows.jsonl", b"\xff\xfe\x00", "file_not_text"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(name: str, content: bytes, code: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    error = run("check", tmp_path / name).exception
    assert isinstance(error, InputError)
    assert (error.code, error.exit_code) == (code, 2)


def test_rows_with_other_numbers_are_other_rows(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", *(line([f"{ASKED} It is order {n}.", SAID]) for n in (101, 102, 103)))
    assert check(path)["findings"] == []


def test_a_copy_is_found_whichever_way_it_was_edited(tmp_path: Path) -> None:
    fewer = SAID.replace(" hear", "")
    more = ASKED.replace("yet", "yet sadly")
    path = lines(tmp_path / "rows.jsonl", GOOD, OTHER, line([ASKED, fewer]), line([more, SAID.upper()]), GOOD)
    found = check(path)["findings"]
    assert [(one["line"], one["kind"], one["copies"]["line"]) for one in found] == [
        (3, "near_duplicate", 1),
        (4, "near_duplicate", 1),
        (5, "exact_duplicate", 1),
    ]


def test_common_words_agree_with_the_textbook() -> None:
    import random

    chance = random.Random(0)
    for _ in range(200):
        a, b = ([chance.randrange(6) for _ in range(chance.randrange(90))] for _ in range(2))
        assert common_words(a, b) == textbook(a, b)


def textbook(a: list[int], b: list[int]) -> int:
    best = [0] * (len(b) + 1)
    for x in a:
        before = list(best)
        for j, y in enumerate(b, start=1):
            best[j] = before[j - 1] + 1 if x == y else max(before[j], best[j - 1])
    return best[-1]


def test_copies_between_files_and_with_held_out_rows_are_named(tmp_path: Path) -> None:
    one, two = lines(tmp_path / "one.jsonl", GOOD), lines(tmp_path / "two.jsonl", OTHER, GOOD)
    held_out = lines(tmp_path / "held.jsonl", line(["Are you open on Sunday?", "No, we rest."]), OTHER)
    report = check(one, two, "--held-out", held_out)
    assert [(one["file"], one["line"], one["kind"], one["copies"]) for one in report["findings"]] == [
        (str(two), 1, "leak", {"file": str(held_out), "line": 2}),
        (str(two), 2, "exact_duplicate", {"file": str(one), "line": 1}),
    ]
    assert not report["passed"]


def test_no_rows_have_no_copies() -> None:
    assert find_copies([], []).within == []


def test_other_answers_to_the_same_prompt_are_contradictions(tmp_path: Path) -> None:
    asked = "How long is the warranty on a kettle?"
    path = lines(
        tmp_path / "rows.jsonl",
        line([asked, "Two years from the day you bought it."]),
        line([asked.upper(), "We give no guarantee whatsoever, sorry."]),
        line(["Hello!", "Good morning, what can I do for you?"]),
        line(["Hello!", "Hi there."]),
    )
    report = check(path)
    assert kinds(report) == [(2, "contradiction")]
    assert report["findings"][0]["copies"]["line"] == 1
    assert report["passed"]


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("Mail ann.lee+shop@example.co.uk today", "Mail [EMAIL] today"),
        ("Tel: 07700 900123", "Tel: [PHONE]"),
        ("Call 555-123-4567.", "Call [PHONE]."),
        ("It is (415) 555-0132, thanks", "It is [PHONE], thanks"),
        ("It is +44 20 7946 0958", "It is [PHONE]"),
        ("It is +1-202-555-0170!", "It is [PHONE]!"),
        ("It is 020 7946 0958", "It is [PHONE]"),
        ("415.555.0132 is mine", "[PHONE] is mine"),
        ("You can call me at 4155550132", "You can call me at [PHONE]"),
        ("Card 4111 1111 1111 1111, please", "Card [CARD], please"),
        ("Card 5500-0000-0000-0004", "Card [CARD]"),
        ("To GB82 WEST 1234 5698 7654 32 please", "To [IBAN] please"),
        ("To DE89370400440532013000.", "To [IBAN]."),
    ],
)
def test_personal_data_is_masked(text: str, mask: str) -> None:
    assert masked(text, find_personal(text)) == mask


@pytest.mark.parametrize(
    "text",
    [
        "Order 4155550132 of 2024-11-05",
        "From 05/11/2024 to 12.11.2024",
        "It costs 1,234,567.89 in all",
        "Parcel 4111 1111 1111 1112",
        "Version 10.11.12.13 is out, see @support",
        "GB00 WEST 1234 5698 7654 32",
    ],
)
def test_other_numbers_are_not_personal(text: str) -> None:
    assert find_personal(text) == []


@pytest.mark.parametrize("text", ["@" + "a" * 20_000, "a" * 20_000 + "@", "x@" + "a." * 10_000, "1 " * 10_000])
def test_the_time_to_look_grows_with_the_text_only(text: str) -> None:
    """The pattern of an address once tried every pair of start and end: 20,000 letters took four seconds."""
    began = time.process_time()
    assert find_personal(f"{text} ann.lee@example.com")[-1].what == "email"
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("Call 555-0132 after six", "Call [PHONE] after six"),
        ("Call me before 12.11.2024", "Call me before 12.11.2024"),
        ("Call me, it costs 1,234,567.89", "Call me, it costs 1,234,567.89"),
        ("0049 30 1234567 is mine", "[PHONE] is mine"),
    ],
)
def test_a_word_such_as_call_makes_a_number_a_phone_number(text: str, mask: str) -> None:
    assert masked(text, find_personal(text)) == mask


def test_the_report_does_not_repeat_personal_data(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", line([f"{ASKED} ann.lee@example.com", SAID]))
    result = run("check", path, "--json")
    assert "email" in result.stdout
    assert "ann.lee" not in result.stdout


def test_damaged_letters_are_found_and_meant_ones_left(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "rows.jsonl",
        line(["I donâ€™t see it", SAID]),
        line(["Ein schönes Café \u2013 \u201cgut\u201d?", SAID]),
    )
    assert kinds(check(path)) == [(1, "encoding")]
    assert damage("A lost \N{REPLACEMENT CHARACTER} letter") is not None


def test_rows_are_counted_by_source_language_turns_and_length(tmp_path: Path) -> None:
    german = ["Wann kommt meine Lampe, die ich am Montag bestellt habe?", "Sie ist unterwegs und kommt am Freitag an."]
    rows = [
        line([ASKED, SAID], source="mail"),
        line(german, source="chat"),
        line([*german, "Danke!", "Gern."], source="chat"),
    ]
    report = check(lines(tmp_path / "rows.jsonl", *rows))
    assert report["by_source"] == {"chat": 2, "mail": 1}
    assert report["by_language"] == {"de": 2, "en": 1}
    assert report["turns"] == {"2": 2, "4": 1}
    assert report["lengths"]["unit"] == "words"
    assert report["lengths"]["reply"]["min"] == 1


def test_groups_that_are_answered_differently_are_told(tmp_path: Path) -> None:
    shades = ["red", "blue", "green", "black", "white", "grey", "brown", "pink"]
    things = ["lamp", "mug", "rug", "desk", "tent"]
    rows = [
        line(
            [
                f"My daughter wants a {s} {t}, is it there?" if n % 2 else f"Is a {s} {t} there?",
                "No." if n % 2 else SAID,
            ]
        )
        for n, (s, t) in enumerate((s, t) for s in shades for t in things)
    ]
    gender = check(lines(tmp_path / "rows.jsonl", *rows, *rows[:10]))["groups"][0]
    assert (gender["attribute"], gender["rows"]) == ("gender", 25)
    words = next(one for one in gender["differences"] if one["measure"] == "reply_words")
    assert words["mentioned"] == 1
    assert words["high"] < 0


def test_a_report_folder_holds_everything(tmp_path: Path, planted: Planted) -> None:
    path = lines(tmp_path / "rows.jsonl", *planted.train[:400])
    result = run("check", path, "--report", tmp_path / "report")
    names = sorted(one.name for one in (tmp_path / "report").iterdir())
    assert names == ["findings.png", "lengths.png", "report.json", "report.md", "topics.png"] or "groups.png" in names
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["schema"] == "polytone.dataset/1"
    assert len(report["topics"]) >= 2
    assert (tmp_path / "report" / "topics.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "report" / "report.json") in result.stdout.replace("\n", "")


def test_lengths_are_counted_in_tokens_of_a_prepared_base(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    base = Base(
        id="letters",
        source="here",
        digest="0" * 64,
        licence="Apache-2.0",
        quantization=Quantization(),
        chat_template_sha256="0" * 64,
        max_length=64,
        created="2026-01-01",
    )
    folder = tmp_path / "bases" / "letters"
    (folder / "source").mkdir(parents=True)
    (folder / "base.json").write_text(base.model_dump_json(by_alias=True))
    tokenizer = Tokenizer(models.WordLevel({letter: n for n, letter in enumerate("?abc")}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "source" / "tokenizer.json"))
    path = lines(tmp_path / "rows.jsonl", line(["abcab", "cab"]))
    lengths = check(path, "--base", "letters", "--home", tmp_path)["lengths"]
    assert (lengths["unit"], lengths["prompt"]["max"], lengths["reply"]["max"]) == ("tokens of letters", 5, 3)


def test_an_unprepared_base_and_unknown_region_are_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", GOOD)
    assert isinstance(run("check", path, "--base", "nope", "--home", tmp_path).exception, NotFoundError)
    error = run("check", path, "--region", "XX").exception
    assert isinstance(error, InputError)
    assert error.code == "region_unknown"


def test_presidio_is_asked_for_by_name_where_it_is_missing(tmp_path: Path) -> None:
    if importlib.util.find_spec("presidio_analyzer"):
        pytest.skip("presidio is installed")
    error = run("check", lines(tmp_path / "rows.jsonl", GOOD), "--presidio").exception
    assert isinstance(error, InputError)
    assert error.code == "presidio_missing"


def test_clean_drops_mends_and_masks_and_says_so(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "rows.jsonl",
        line([ASKED, SAID], id="a"),
        GOOD[:-5],
        line([ASKED, SAID.replace("soon", "shortly")], id="c"),
        line(["Mail me at ann.lee@example.com, I donâ€™t call", "We will."], id="d"),
        OTHER,
    )
    before, out = path.read_bytes(), tmp_path / "clean.jsonl"
    assert run("clean", path, "--out", out, "--held-out", lines(tmp_path / "held.jsonl", OTHER)).exit_code == 0
    kept = records(out)
    assert [row["id"] for row in kept] == ["a", "d"]
    assert kept[1]["messages"][0]["content"] == "Mail me at [EMAIL], I don\u2019t call"
    changes = records(tmp_path / "clean.jsonl.changes.jsonl")
    assert sorted((one["line"], one["action"]) for one in changes) == [
        (2, "dropped"),
        (3, "dropped"),
        (4, "changed"),
        (4, "changed"),
        (5, "dropped"),
    ]
    assert path.read_bytes() == before


def test_rows_are_counted_once_and_in_plain_plurals(tmp_path: Path) -> None:
    """Cleaning two rows once said "3 times a row was dropped and 3 times one was changed"."""
    twice = line(["Mail ann.lee@example.com or call 07700 900123, I donâ€™t read letters", "We will."])
    path = lines(tmp_path / "rows.jsonl", GOOD, OTHER, twice, twice, GOOD[:-5])
    out = tmp_path / "clean.jsonl"
    result = run("clean", path, "--out", out)
    assert f"{out}: 3 rows; 2 rows dropped, 1 changed." in result.stdout
    counts = json.loads(run("clean", path, "--out", out, "--force", "--json").stdout)
    assert (counts["rows"], counts["dropped"], counts["changed"]) == (3, 2, 1)
    shown = run("check", lines(tmp_path / "one.jsonl", GOOD, GOOD)).stdout
    assert "2 rows in 1 file, 2 usable." in shown
    assert "1 row repeats an earlier one exactly." in shown
    assert "No problems found." in run("check", lines(tmp_path / "good.jsonl", GOOD)).stdout


def test_nothing_is_written_where_no_row_is_left(tmp_path: Path) -> None:
    """Columns `question` and `answer` once became an empty file, with exit code 0."""
    path, out = tmp_path / "odd.csv", tmp_path / "out.jsonl"
    path.write_text("question,answer\nHow long?,Two days.\n")
    error = run("clean", path, "--out", out).exception
    assert isinstance(error, CheckError)
    assert (error.code, error.exit_code) == ("no_rows_left", 1)
    assert "its keys are question, answer; needed are messages" in error.message
    assert sorted(one.name for one in tmp_path.iterdir()) == ["odd.csv"]


def test_keys_that_training_does_not_use_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,agent,score\nHow long does it take?,Two days.,Ann,5\n")
    assert check(path)["files"][0]["unused_keys"] == ["agent", "score"]
    assert "training does not use agent, score." in run("check", path).stdout


def test_a_row_with_personal_data_in_a_reply_is_dropped_where_it_is_asked_for(tmp_path: Path) -> None:
    """A voice that learns from "write to [EMAIL]" says so to customers."""
    reply = line(["Where can I write to you about my lamp?", "Write to ann.lee@example.com please."])
    question = line(["I am ann.lee@example.com, where is my lamp?", SAID])
    path, out = lines(tmp_path / "rows.jsonl", reply, question), tmp_path / "out.jsonl"
    assert run("clean", path, "--out", out, "--drop-personal-replies").exit_code == 0
    assert [row["messages"][0]["content"] for row in records(out)] == ["I am [EMAIL], where is my lamp?"]
    error = run("clean", path, "--out", tmp_path / "o", "--drop-personal-replies", "--keep-personal").exception
    assert isinstance(error, InputError)
    assert error.code == "options_conflict"


@pytest.mark.slow
def test_cleaning_again_changes_nothing(tmp_path: Path, planted: Planted) -> None:
    train, held_out = write(tmp_path, replace(planted, train=planted.train[:2500]))
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    assert run("clean", train, "--out", first, "--held-out", held_out).exit_code == 0
    assert run("clean", first, "--out", second, "--held-out", held_out).exit_code == 0
    assert second.read_bytes() == first.read_bytes()
    assert (tmp_path / "second.jsonl.changes.jsonl").read_text() == ""
    assert len(records(first)) > 2000
    assert set(check(first, "--held-out", held_out)["counts"]) <= {Kind.CONTRADICTION}


def test_personal_data_stays_where_it_is_asked_for(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", line([f"{ASKED} ann.lee@example.com", SAID]))
    assert run("clean", path, "--out", tmp_path / "out.jsonl", "--keep-personal").exit_code == 0
    assert "ann.lee@example.com" in (tmp_path / "out.jsonl").read_text()


def test_clean_writes_over_nothing_unasked(tmp_path: Path) -> None:
    path, there = lines(tmp_path / "rows.jsonl", GOOD), lines(tmp_path / "there.jsonl", OTHER)
    for target, more, code in ((path, ["--force"], "output_is_input"), (there, [], "output_exists")):
        error = run("clean", path, "--out", target, *more).exception
        assert isinstance(error, InputError)
        assert error.code == code
    assert there.read_text() == f"{OTHER}\n"
    assert run("clean", path, "--out", there, "--force").exit_code == 0
    assert records(there) == [json.loads(GOOD)]


def test_clean_refuses_judged_replies(tmp_path: Path) -> None:
    error = run(
        "clean", lines(tmp_path / "rows.jsonl", json.dumps(SHAPES["verdict"])), "--out", tmp_path / "o"
    ).exception
    assert isinstance(error, InputError)
    assert error.code == "rows_of_other_kind"
    assert not (tmp_path / "o").exists()


def test_files_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "full").touch()
    with pytest.raises(Exception, match="Cannot write"):
        write_together({tmp_path / "a": b"one", tmp_path / "b": b"two"})
    assert sorted(one.name for one in tmp_path.iterdir()) == ["b"]
