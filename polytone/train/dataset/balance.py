"""Topics of the rows, found in what users say."""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

from .formats import Row

SAMPLE = 20_000
TOPICS, ROWS_A_TOPIC = 12, 25
TERMS = 4
NO_TERMS = "other"


class Topic(BaseModel):
    """Rows that use the same words; `name` has their most distinctive words."""

    name: str
    rows: int
    share: float
    reply_words: float


def find_topics(rows: Sequence[Row]) -> list[Topic]:
    """Cluster the rows by their users' words, the largest topic first.

    TF-IDF and mini-batch k-means (Sculley 2010) with a fixed seed. Of more than `SAMPLE` rows a sample is drawn, and
    shares are of the sample. No topics where there are fewer than two times `ROWS_A_TOPIC` rows.
    """
    drawn = sample(rows)
    count = min(TOPICS, len(drawn) // ROWS_A_TOPIC)
    if count < 2:
        return []
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [" ".join(turn.content for turn in row.conversation.messages if turn.role == "user") for row in drawn]
    vectorizer = TfidfVectorizer(stop_words="english", min_df=2, max_df=0.5, max_features=4000, sublinear_tf=True)
    try:
        vectors = vectorizer.fit_transform(texts)
    except ValueError:  # no word occurs in two rows
        return []
    model = MiniBatchKMeans(count, random_state=0, n_init=1, batch_size=2048).fit(vectors)
    terms = vectorizer.get_feature_names_out()
    replies = np.array([len(row.conversation.messages[-1].content.split()) for row in drawn])
    topics = [
        topic(name_of(model.cluster_centers_[k], terms), replies[model.labels_ == k], len(drawn)) for k in range(count)
    ]
    return sorted((one for one in topics if one.rows), key=lambda one: -one.rows)


def sample(rows: Sequence[Row]) -> list[Row]:
    if len(rows) <= SAMPLE:
        return list(rows)
    drawn = np.random.default_rng(0).choice(len(rows), SAMPLE, replace=False)
    return [rows[index] for index in sorted(drawn.tolist())]


def name_of(center: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", terms: Sequence[str]) -> str:
    top = [str(terms[index]) for index in np.argsort(-center)[:TERMS] if center[index] > 0]
    return ", ".join(top) or NO_TERMS


def topic(name: str, replies: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]", total: int) -> Topic:
    mean = round(float(replies.mean()), 1) if len(replies) else 0.0
    return Topic(name=name, rows=len(replies), share=round(len(replies) / total, 4), reply_words=mean)
