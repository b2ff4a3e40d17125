"""Files to usable rows and what is wrong with the others."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polytone.contract.errors import InputError, PolytoneError

from .containers import Record, read_records
from .findings import Finding, Kind, Place, found
from .formats import Format, Row, formats, read_row


@dataclass(frozen=True)
class Source:
    """A file as it was read: `rows` are usable, `broken` says why others are not, `total` counts both."""

    path: str
    rows: list[Row]
    broken: list[Finding]
    total: int

    @property
    def formats(self) -> dict[str, int]:
        return dict(Counter(row.format for row in self.rows))


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """Read files, each once.

    Raises:
        InputError: names every file that cannot be read at all; the code is the first one's.
    """
    known, sources, refused = formats(), [], list[PolytoneError]()
    for path in dict.fromkeys(paths):
        try:
            sources.append(read_source(path, known))
        except InputError as error:
            refused.append(error)
    if refused:
        raise InputError("\n".join(error.message for error in refused), code=refused[0].code)
    return sources


def read_source(path: Path, known: list[Format]) -> Source:
    rows: list[Row] = []
    broken: list[Finding] = []
    records = read_records(path)
    for record in records:
        read = read_one(Place(file=str(path), line=record.line), record, known)
        if isinstance(read, Row):
            rows.append(read)
        else:
            broken.extend(read)
    return Source(str(path), rows, broken, len(records))


def read_one(place: Place, record: Record, known: list[Format]) -> Row | list[Finding]:
    if record.value is None:
        return [found(place, Kind.UNREADABLE, record.problem)]
    return read_row(place, record.value, known)
