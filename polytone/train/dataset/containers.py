"""Files to records: JSON lines, JSON, CSV and Parquet, gzipped or not; and records to JSON lines."""

import csv
import difflib
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytone.contract.errors import InputError

KINDS = "JSON lines, JSON, CSV or Parquet"
DELIMITERS = ",;\t"
EXCEL = (".xlsx", ".xlsm", ".xls", ".ods")
GZIP, ZIP, UTF_16 = b"\x1f\x8b", b"PK\x03\x04", (b"\xff\xfe", b"\xfe\xff")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
KIND_BY_SUFFIX = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".json": "json",
}


@dataclass(frozen=True)
class Record:
    """One row as it was read; `problem` says why where it was not, and `value` is None then."""

    line: int
    value: dict[str, Any] | None
    problem: str = ""


@dataclass(frozen=True)
class RecordFile:
    """The records of a file, and the SHA-256 of its bytes."""

    sha256: str
    records: list[Record]


def read_records(path: Path) -> RecordFile:
    """Read the records of a file. Its kind is told by its suffix, else by its first bytes.

    Raises:
        InputError: `file_not_found`, `file_not_text`, `file_unreadable` or `file_empty`; a row that cannot be read
            is a record with a problem instead.
    """
    stored = read_bytes(path)
    content = unpacked(path, stored)
    match kind_of(path, content):
        case "parquet":
            records = list(parquet_records(path, content))
        case "csv":
            records = list(csv_records(decoded(path, content)))
        case "json":
            records = json_records(path, content)
        case _:
            records = list(line_records(content))
    if not records:
        raise InputError(
            f"{path}: has no rows. Name a file of conversations; a recipe's data.held_out may be left out.",
            code="file_empty",
        )
    return RecordFile(hashlib.sha256(stored).hexdigest(), records)


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: {not_found(path)} Name a file as {KINDS}.", code="file_not_found") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder. Name a file as {KINDS}.", code="file_not_found") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).", code="file_unreadable") from None


def not_found(path: Path) -> str:
    folder = path.absolute().parent
    names = [one.name for one in folder.iterdir() if one.is_file()] if folder.is_dir() else []
    similar = difflib.get_close_matches(path.name, names, n=1)
    return f"there is no such file in {folder}." + (f" Did you mean {similar[0]}?" if similar else "")


def unpacked(path: Path, stored: bytes) -> bytes:
    """The file's content without compression and byte order mark."""
    content = stored
    if stored.startswith(GZIP):
        try:
            content = gzip.decompress(stored)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: is a damaged gzip file: {error}.", code="file_unreadable") from None
    if path.suffix.lower() in EXCEL:
        raise InputError(f"{path}: Excel is not read. Save the sheet as CSV (UTF-8).", code="file_unreadable")
    if content.startswith(ZIP):
        raise InputError(f"{path}: is a zip archive. Unpack it, and name the files in it.", code="file_unreadable")
    if content.startswith(UTF_16):
        raise InputError(f"{path}: is UTF-16 text. Save it as UTF-8.", code="file_not_text")
    return content.removeprefix(BYTE_ORDER_MARK)


def kind_of(path: Path, content: bytes) -> str:
    if content.startswith(b"PAR1"):
        return "parquet"
    suffix = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    return KIND_BY_SUFFIX.get(suffix.lower(), "json" if content.lstrip().startswith(b"[") else "lines")


def decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: is not UTF-8 text. Save it as UTF-8.", code="file_not_text") from None


def line_records(content: bytes) -> Iterator[Record]:
    # Only \n ends a line: U+2028 and similar characters may occur inside a JSON string.
    for number, line in enumerate(content.split(b"\n"), start=1):
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
        return Record(number, value) if is_text(value) else Record(number, None, "has half a character (\\ud...)")
    return Record(number, None, f"is {type(value).__name__}, not an object with keys")


def is_text(value: object) -> bool:
    """False where JSON names half of a surrogate pair, which UTF-8 cannot hold."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


def json_records(path: Path, content: bytes) -> list[Record]:
    """A list of objects, `{"data": [...]}`, or one conversation; JSON lines with this suffix are read as lines."""
    text = decoded(path, content)
    try:
        whole = json.loads(text)
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply to be conversations.", code="file_unreadable") from None
    except ValueError as error:
        lines = list(line_records(content))
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


def csv_records(text: str) -> Iterator[Record]:
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


def parquet_records(path: Path, content: bytes) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: is not Parquet: {error}.", code="file_unreadable") from None
    for number, row in enumerate(rows, start=1):
        yield Record(number, {name: cell(value) if isinstance(value, str) else value for name, value in row.items()})


def json_lines(records: Iterable[dict[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(record, ensure_ascii=False, default=str)}\n" for record in records).encode()
