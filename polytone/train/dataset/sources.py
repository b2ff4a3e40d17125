"""Files of rows: the usable rows of a file, and the problems of the others."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polytone.contract.errors import InputError, PolytoneError

from .containers import Record, read_records
from .findings import Finding, Kind, Place, finding
from .formats import Row, read_row


@dataclass(frozen=True)
class Source:
    """A file as it was read: `rows` are usable, `broken` says why others are not, `total` counts both.

    `sha256` is that of the file's bytes.
    """

    path: str
    sha256: str
    rows: list[Row]
    broken: list[Finding]
    total: int

    @property
    def formats(self) -> dict[str, int]:
        return dict(Counter(row.format for row in self.rows))

    @property
    def unused_keys(self) -> list[str]:
        """Keys that are not part of a row's conversation, in the order they were seen."""
        return list(dict.fromkeys(key for row in self.rows for key in row.extra if key != "source"))


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """Read files, each once.

    Raises:
        InputError: names every file that cannot be read at all; the code is the first one's.
    """
    sources, refused = [], list[PolytoneError]()
    for path in dict.fromkeys(paths):
        try:
            sources.append(read_source(path))
        except InputError as error:
            refused.append(error)
    if refused:
        raise InputError("\n".join(error.message for error in refused), code=refused[0].code)
    return sources


def read_source(path: Path) -> Source:
    """Read a file of rows of any format.

    Raises:
        InputError: as `read_records`.
    """
    file = read_records(path)
    rows: list[Row] = []
    broken: list[Finding] = []
    for record in file.records:
        row = row_of(Place(file=str(path), line=record.line), record)
        if isinstance(row, Row):
            rows.append(row)
        else:
            broken.extend(row)
    return Source(str(path), file.sha256, rows, broken, len(file.records))


def row_of(place: Place, record: Record) -> Row | list[Finding]:
    if record.value is None:
        return [finding(place, Kind.UNREADABLE, record.problem)]
    return read_row(place, record.value)
