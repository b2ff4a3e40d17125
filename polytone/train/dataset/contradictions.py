"""Different answers to the same question."""

from collections.abc import Iterator, Sequence

from .findings import Finding, Kind, finding
from .formats import Row
from .overlap import split_words

SHORTEST_PROMPT = 5  # words; "Hi, I need help" has many right answers
DIFFERENT = 0.3  # answers with a lower share of common words (Jaccard) are different


def find_contradictions(rows: Sequence[Row]) -> Iterator[Finding]:
    """Rows whose whole prompt (all but the last turn, case and punctuation apart) is an earlier row's, and whose
    answer has little in common with that row's."""
    first_with: dict[tuple[tuple[str, ...], ...], Row] = {}
    for row in rows:
        *before, last = row.conversation.messages
        prompt = tuple((turn.role, *split_words(turn.content)) for turn in before)
        if (
            sum(len(turn) - 1 for turn, message in zip(prompt, before, strict=True) if message.role != "system")
            < SHORTEST_PROMPT
        ):
            continue
        first = first_with.setdefault(prompt, row)
        answers = set(split_words(last.content)), set(split_words(first.conversation.messages[-1].content))
        if first is not row and jaccard(*answers) < DIFFERENT:
            detail = (
                f"answers {shown(last.content)}; the same was answered {shown(first.conversation.messages[-1].content)}"
            )
            yield finding(row.place, Kind.CONTRADICTION, detail, copies=first.place)


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0


def shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
