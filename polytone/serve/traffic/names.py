"""Names of voices and versions that a report or an export may be asked for."""

from difflib import get_close_matches

from sqlalchemy import select
from sqlalchemy.orm import Session

from polytone.contract.errors import NotFoundError
from polytone.contract.version_id import voice_of
from polytone.serve.database.tables import AnswerRow, DriftRow, FeedbackRow, VersionRow

SUGGESTIONS = 3


def require_name(session: Session, name: str, param: str) -> None:
    """Check that `name` is a voice or version that was published, or one whose answers are on record.

    Raises:
        NotFoundError: `version_not_found` for a name with `@`, else `voice_not_found`; with the nearest names.
    """
    published = session.execute(select(VersionRow.id, VersionRow.name)).all()
    names = {version for version, _ in published} | {voice for _, voice in published}
    if name in names or is_recorded(session, name):
        return
    kind = "version" if "@" in name else "voice"
    raise NotFoundError(
        f"There is no {kind} {name!r}.{suggestion(name, sorted(names))}", code=f"{kind}_not_found", param=param
    )


def is_recorded(session: Session, name: str) -> bool:
    """The base, and what was deleted after it was published, are in no list of versions."""
    columns = (AnswerRow.version, DriftRow.version, FeedbackRow.voice)  # each of them has an index
    return any(session.scalar(select(column).where(column == name).limit(1)) is not None for column in columns)


def suggestion(name: str, names: list[str]) -> str:
    """A sentence with the versions of the voice, the names most like `name`, or the first few voices."""
    if versions := [one for one in names if "@" in name and voice_of(one) == voice_of(name) != one]:
        return f" Versions of {voice_of(name)}: {some(versions)}."
    if near := get_close_matches(name, names, SUGGESTIONS):
        return f" Did you mean {' or '.join(near)}?"
    voices = [one for one in names if "@" not in one]
    if not voices:
        return " No version was published yet: polytone adapters publish VERSION"
    return f" There are these voices: {some(voices)}."


def some(names: list[str]) -> str:
    more = f" and {len(names) - SUGGESTIONS} more" if len(names) > SUGGESTIONS else ""
    return f"{', '.join(names[:SUGGESTIONS])}{more}"
