"""The language of a row, by py3langid (Lui and Baldwin 2012)."""

from collections import Counter
from collections.abc import Sequence

from .formats import Row

SHORTEST = 20  # characters; the language of fewer is a guess
LONGEST = 1000  # more are not needed
UNKNOWN = "too short to tell"


def languages(rows: Sequence[Row]) -> dict[str, int]:
    """ISO 639-1 code -> rows, the most frequent first."""
    import py3langid

    counts: Counter[str] = Counter()
    for row in rows:
        text = " ".join(turn.content for turn in row.conversation.messages if turn.role != "system")[:LONGEST]
        counts[str(py3langid.classify(text)[0]) if len(text) >= SHORTEST else UNKNOWN] += 1
    return dict(counts.most_common())
