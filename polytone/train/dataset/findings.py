"""Findings: the problem of a row, and the row it is a copy of."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Kind(StrEnum):
    """Kinds of problems. The first five make a row unusable; so does a leak."""

    UNREADABLE = "unreadable"
    MALFORMED = "malformed"
    EMPTY = "empty"
    ONE_SIDED = "one_sided"
    ROLE_ORDER = "role_order"
    LEAK = "leak"
    EXACT_DUPLICATE = "exact_duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    CONTRADICTION = "contradiction"
    ENCODING = "encoding"
    PERSONAL = "personal"


BROKEN = (Kind.UNREADABLE, Kind.MALFORMED, Kind.EMPTY, Kind.ONE_SIDED, Kind.ROLE_ORDER)


class Place(BaseModel):
    """A row: its file as it was named, and its line; in CSV, Parquet and JSON lists its number, from 1."""

    model_config = ConfigDict(frozen=True)

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Finding(BaseModel):
    """`copies` names the row that this one repeats, contradicts or leaked from; `similarity` is the share of words
    that two copies have in common."""

    model_config = ConfigDict(frozen=True)

    file: str
    line: int
    kind: Kind
    detail: str
    copies: Place | None = None
    similarity: float | None = None

    @property
    def place(self) -> Place:
        return Place(file=self.file, line=self.line)


def finding(
    place: Place, kind: Kind, detail: str, copies: Place | None = None, similarity: float | None = None
) -> Finding:
    rounded = None if similarity is None else round(similarity, 3)
    return Finding(file=place.file, line=place.line, kind=kind, detail=detail, copies=copies, similarity=rounded)
