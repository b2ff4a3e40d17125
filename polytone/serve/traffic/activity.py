"""Activity of versions over time: answers, tokens, times and thumbs."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import select

from polytone.contract.errors import InputError
from polytone.serve.database.session import Database, in_utc, now, reading
from polytone.serve.database.tables import AnswerRow, FeedbackRow

from .feedback import active_feedback

MAX_ROWS = 200_000
ROWS_AT_ONCE = 5000
SHORTEST_BUCKET = timedelta(seconds=1)
COMPLETE = 200
FAILED = 500  # as the alerts count: a client that left early (499) is not a failure of the version


@dataclass
class Bucket:
    """The answers of one version in one interval."""

    answers: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_tokens: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    thumbs: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})

    def as_json(self, at: datetime) -> dict[str, Any]:
        return {
            "at": at.isoformat(),
            "answers": self.answers,
            "errors": self.errors,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "first_token_p50": quantile(self.first_tokens, 0.5),
            "first_token_p95": quantile(self.first_tokens, 0.95),
            "seconds_p50": quantile(self.seconds, 0.5),
            "seconds_p95": quantile(self.seconds, 0.95),
            "thumbs_up": self.thumbs["up"],
            "thumbs_down": self.thumbs["down"],
        }


def period(since: datetime | None, until: datetime | None, buckets: int) -> tuple[datetime, datetime]:
    """The requested period, by default the last 24 hours.

    Raises:
        InputError: `invalid_request`.
    """
    end = in_utc(until) if until else now()
    try:
        begin = in_utc(since) if since else end - timedelta(days=1)
    except OverflowError:
        begin = end
    if end - begin < buckets * SHORTEST_BUCKET:
        raise InputError(
            "since: it must be before until, by at least one second for each bucket.",
            code="invalid_request",
            param="since",
        )
    return begin, end


def activity(database: Database, since: datetime, until: datetime, buckets: int) -> dict[str, Any]:
    """Answers and thumbs of every version from `since` up to `until`, in `buckets` intervals of equal length. Blocks.

    Intervals in which nothing happened are left out. Times are in seconds, and of complete answers only. A thumb counts
    in the interval in which it was given, if it was still in force at `until`. Of more than `MAX_ROWS` answers only the
    newest are counted, and `cut` is true.
    """
    step = (until - since) / buckets
    versions: dict[tuple[str, str], dict[int, Bucket]] = defaultdict(lambda: defaultdict(Bucket))
    count = 0
    for at, adapter, version, status, prompt, completion, first, seconds in answers_between(database, since, until):
        count += 1
        if count > MAX_ROWS:  # the one beyond the limit only shows that there are more
            continue
        bucket = versions[adapter, version][place(at, since, step, buckets)]
        bucket.answers += status < FAILED
        bucket.errors += status >= FAILED
        bucket.prompt_tokens += prompt
        bucket.completion_tokens += completion
        if status == COMPLETE:
            bucket.seconds.append(seconds)
            if first is not None:
                bucket.first_tokens.append(first)
    for thumb in thumbs_between(database, since, until):
        bucket = versions[thumb.voice, thumb.version][place(thumb.at, since, step, buckets)]
        bucket.thumbs[str(thumb.value)] += 1
    return {
        "since": since.isoformat(),
        "until": until.isoformat(),
        "bucket_seconds": step.total_seconds(),
        "cut": count > MAX_ROWS,
        "versions": [
            {
                "adapter": adapter,
                "version": version,
                "points": [bucket.as_json(since + number * step) for number, bucket in sorted(points.items())],
            }
            for (adapter, version), points in sorted(versions.items())
        ],
    }


def answers_between(database: Database, since: datetime, until: datetime) -> Iterator[Any]:
    """Columns of answers, the newest first, one more than the limit."""
    row = AnswerRow
    columns = (row.at, row.voice, row.version, row.status, row.prompt_tokens, row.completion_tokens)
    query = select(*columns, row.first_token_seconds, row.seconds).where(row.at >= since, row.at < until)
    newest = query.order_by(row.at.desc()).limit(MAX_ROWS + 1).execution_options(yield_per=ROWS_AT_ONCE)
    with reading(database) as session, session.execute(newest) as rows:
        yield from rows


def thumbs_between(database: Database, since: datetime, until: datetime) -> Sequence[FeedbackRow]:
    within = (FeedbackRow.at >= since, FeedbackRow.at < until)
    with reading(database) as session:
        return active_feedback(session, until, FeedbackRow.key == "thumb", *within)


def place(at: datetime, since: datetime, step: timedelta, buckets: int) -> int:
    return min(int((at - since) / step), buckets - 1)


def quantile(values: list[float], share: float) -> float | None:
    return round(float(np.quantile(values, share)), 4) if values else None
