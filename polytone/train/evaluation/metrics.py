"""Figures of losses and replies, one value for each conversation, so that they can be resampled."""

import re
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from polytone.measure.signals import measure
from polytone.measure.tone import Tone, learn
from polytone.train.artifact.generation import GeneratedReply
from polytone.train.artifact.scoring import Score
from polytone.train.intervals import Floats, Sample, mean_of

from .questions import Question

FOLDS = 5
# Every figure by its key in evaluation.json, with its name in the report and in docs/evaluation.md.
NAMES = MappingProxyType(
    {
        "loss": "loss",
        "perplexity": "perplexity",
        "accuracy": "accuracy",
        "chrf": "chrF",
        "tone": "tone",
        "on_topic": "on topic",
        "repetition": "repetition",
        "cut_off": "cut off",
        "empty": "empty",
        "refusal": "refusal",
        "reply_words": "words per reply",
    }
)


@dataclass(frozen=True)
class ToneClassifiers:
    """Classifiers of tone: `of_fold[k]` has not seen the conversations k, k + FOLDS, ...; `of_all` has seen all.

    Empty where there are too few conversations to learn from.
    """

    of_fold: tuple[Tone, ...] = ()
    of_all: Tone | None = None

    def tone(self, replies: list[str]) -> Floats:
        """(n,) how much each reply sounds like the voice, by a classifier that has not seen its conversation."""
        values = np.zeros(len(replies))
        for fold, classifier in enumerate(self.of_fold):
            off = classifier.off(replies[fold::FOLDS])
            values[fold::FOLDS] = 1 - np.asarray(off, dtype=np.float64)
        empty = [not text.strip() for text in replies]
        values[empty] = 0.0
        return values


def learn_tone(questions: list[Question], base_replies: list[str]) -> ToneClassifiers:
    """Tell the voice's reference replies from the base's replies to the same customers, cross-fitted."""
    everything = range(len(questions))

    def classifier(indices: list[int]) -> Tone | None:
        voice = [text for index in indices for text in questions[index].voice_replies]
        return learn(voice, [base_replies[index] for index in indices if base_replies[index].strip()])

    folds = [classifier([index for index in everything if index % FOLDS != fold]) for fold in range(FOLDS)]
    of_fold = tuple(one for one in folds if one is not None)
    return ToneClassifiers(of_fold, classifier(list(everything))) if len(of_fold) == FOLDS else ToneClassifiers()


def score_figures(scores: list[Score]) -> dict[str, Sample]:
    """Loss (nats) and accuracy, both per assistant token."""
    tokens = np.array([score.tokens for score in scores], dtype=np.float64)
    return {
        "loss": Sample(np.array([score.nats for score in scores]), tokens),
        "accuracy": Sample(np.array([score.correct for score in scores], dtype=np.float64), tokens),
    }


def reply_figures(
    questions: list[Question], replies: list[GeneratedReply], classifiers: ToneClassifiers
) -> dict[str, Sample]:
    """The figures of replies; `tone` where there were enough conversations to learn it from."""
    texts = [reply.text for reply in replies]
    signals = [
        measure(question.prompt.messages, reply.text, reply.finish_reason)
        for question, reply in zip(questions, replies, strict=True)
    ]
    figures = {name: mean_of([one[name] for one in signals]) for name in ("repetition", "cut_off", "empty", "refusal")}
    figures["chrf"] = mean_of(chrf(texts, [question.reference for question in questions]))
    figures["on_topic"] = mean_of(on_topic(questions, texts))
    figures["reply_words"] = mean_of([len(text.split()) for text in texts])
    if classifiers.of_fold:
        figures["tone"] = mean_of(classifiers.tone(texts))
    return {name: figures[name] for name in NAMES if name in figures}


def chrf(replies: list[str], references: list[str]) -> list[float]:
    """Sentence-level chrF (Popović 2015) with sacreBLEU's settings, 0 to 100."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    return [
        float(metric.sentence_score(reply, [reference]).score)
        for reply, reference in zip(replies, references, strict=True)
    ]


def on_topic(questions: list[Question], replies: list[str]) -> Floats:
    """(n,) the share of the other conversations that a reply is less similar to than to its own; by chance a half.

    A conversation is its question with the reference reply; similarity is the cosine of tf-idf vectors of words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, analyzer=words_of)
    targets = words.fit_transform([f"{one.text} {one.reference}" for one in questions])
    similar = (words.transform(replies) @ targets.T).toarray()
    own = similar.diagonal()[:, None]
    nearer = (own > similar) + 0.5 * (own == similar)
    return np.asarray((nearer.sum(axis=1) - 0.5) / max(1, len(questions) - 1))  # half a tie with itself


def words_of(text: str) -> list[str]:
    """Words in lower case; the characters of a text without words, so that no text is empty."""
    return re.findall(r"\w+", text.lower()) or re.findall(r"\S", text)
