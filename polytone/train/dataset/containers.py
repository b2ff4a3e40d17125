"""Files to records: JSON lines, JSON, CSV and Parquet."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytone.contract.errors import InputError

KINDS = "JSON lines, JSON, CSV or Parquet"
DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Record:
    """One row as it was read; `problem` says why where it was not, and `value` is None then."""

    line: int
    value: dict[str, Any] | None
    problem: str = ""


def read_records(path: Path) -> list[Record]:
    """Read the records of a file; the kind of file is told by its ending, else by its first bytes.

    Raises:
        InputError: `file_not_found`, `file_not_text`, `file_unreadable` or `file_empty`; a row that cannot be read
            is a record with a problem instead.
    """
    raw = read_bytes(path)
    match kind_of(path, raw):
        case "parquet":
            records = list(parquet_records(path))
        case "csv":
            records = list(csv_records(path, text_of(path, raw)))
        case "json":
            records = json_records(path, raw)
        case _:
            records = list(line_records(raw))
    if not records:
        raise InputError(f"{path}: has no rows. Name a file of conversations.", code="file_empty")
    return records


def read_bytes(path: Path) -> bytes:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise InputError(f"{path}: {what}. Name a file of conversations as {KINDS}.", code="file_not_found")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).", code="file_unreadable") from None
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path}: is UTF-16 text. Save it as UTF-8.", code="file_not_text")
    return raw.removeprefix(b"\xef\xbb\xbf")


def kind_of(path: Path, raw: bytes) -> str:
    endings = {
        ".jsonl": "lines",
        ".ndjson": "lines",
        ".csv": "csv",
        ".tsv": "csv",
        ".parquet": "parquet",
        ".json": "json",
    }
    if raw.startswith(b"PAR1"):
        return "parquet"
    return endings.get(path.suffix.lower(), "json" if raw.lstrip().startswith(b"[") else "lines")


def text_of(path: Path, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: is not UTF-8 text. Save it as UTF-8.", code="file_not_text") from None


def line_records(raw: bytes) -> Iterator[Record]:
    # Lines end with \n alone: U+2028 and its like may stand inside a JSON string.
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if line.strip():
            yield line_record(number, line)


def line_record(number: int, line: bytes) -> Record:
    try:
        return record(number, json.loads(line.decode()))
    except UnicodeDecodeError as error:
        return Record(number, None, f"is not UTF-8 text from byte {error.start + 1}")
    except (ValueError, RecursionError) as error:
        return Record(number, None, f"is not JSON: {reason(error)}")


def reason(error: Exception) -> str:
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def record(number: int, value: object) -> Record:
    if isinstance(value, dict):
        return Record(number, value) if is_text(value) else Record(number, None, "holds half of a letter (\\ud...)")
    return Record(number, None, f"is {type(value).__name__}, not an object with keys")


def is_text(value: object) -> bool:
    """JSON can name half of a surrogate pair, which no file can hold."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


def json_records(path: Path, raw: bytes) -> list[Record]:
    """A list of objects, `{"data": [...]}`, or one conversation; a file of lines under this ending is read as such."""
    text = text_of(path, raw)
    try:
        whole = json.loads(text)
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply to be conversations.", code="file_unreadable") from None
    except ValueError as error:
        lines = list(line_records(raw))
        if any(one.value is not None for one in lines) and not text.lstrip().startswith("["):
            return lines
        raise InputError(f"{path}: is not JSON: {reason(error)}.", code="file_unreadable") from None
    rows = whole.get("data", [whole]) if isinstance(whole, dict) else whole
    if not isinstance(rows, list):
        raise InputError(
            f'{path}: is neither a list of rows nor {{"data": [rows]}}. Write one of these, or one row a line.',
            code="file_unreadable",
        )
    return [record(number, row) for number, row in enumerate(rows, start=1)]


def csv_records(path: Path, text: str) -> Iterator[Record]:
    """Rows by the names in the first line; cells that hold turns as JSON are read as such."""
    heading = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=heading.count)
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restkey="", strict=True)
    number = 0
    try:
        for number, row in enumerate(rows, start=1):
            yield csv_record(number, row)
    except csv.Error as error:
        yield Record(number + 1, None, f"is not CSV from here on: {error}")


def csv_record(number: int, row: dict[str, Any]) -> Record:
    if "" in row and isinstance(row[""], list):
        return Record(number, None, "has more cells than the first line has names; quote cells that hold the delimiter")
    if None in row.values():
        return Record(number, None, "has fewer cells than the first line has names")
    return Record(number, {name: cell(value) for name, value in row.items()})


def cell(value: str) -> Any:
    """The turns in a cell that holds a JSON list of objects, else its text."""
    if value.startswith("["):
        try:
            turns = json.loads(value)
        except ValueError:
            return value
        if turns and isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
            return turns
    return value


def parquet_records(path: Path) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: is not Parquet: {error}.", code="file_unreadable") from None
    for number, row in enumerate(rows, start=1):
        yield Record(number, {name: cell(value) if isinstance(value, str) else value for name, value in row.items()})
