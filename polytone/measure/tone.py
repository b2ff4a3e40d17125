"""Tone: a classifier that tells replies of a voice from those of its base and of other voices."""

from dataclasses import dataclass
from typing import Any

import numpy as np

FEATURES = 4096
FEWEST = 16


@dataclass(frozen=True)
class Tone:
    """A logistic regression on hashed letter sequences; `weights` (FEATURES,) float32."""

    weights: Any
    bias: float

    def off(self, replies: list[str]) -> Any:
        """(n,) probabilities that each reply is not from this voice."""
        logits = features(replies) @ self.weights + self.bias
        return 1 / (1 + np.exp(-np.clip(logits, -30, 30)))


def features(replies: list[str]) -> Any:
    """(n, FEATURES), sparse: counts of hashed sequences of two to four letters within words."""
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), n_features=FEATURES, lowercase=False)
    return hashing.transform(replies)


def learn(mine: list[str], others: list[str]) -> Tone | None:
    """Train a classifier to tell `mine` from `others`; None if either has fewer than `FEWEST` replies."""
    from sklearn.linear_model import LogisticRegression

    if min(len(mine), len(others)) < FEWEST:
        return None
    labels = [0] * len(mine) + [1] * len(others)
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=300)
    model.fit(features([*mine, *others]), labels)
    return Tone(model.coef_[0].astype(np.float32), float(model.intercept_[0]))
