"""Replies to figures, one value for each conversation, so that whatever is drawn from them can be resampled."""

import re
from dataclasses import dataclass

import numpy as np

from polytone.measure.signals import measure
from polytone.measure.tone import Tone, learn
from polytone.train.artifact.generation import GeneratedReply
from polytone.train.artifact.scoring import Score
from polytone.train.intervals import Floats, Sample, mean_of

from .questions import Question

FOLDS = 5
REPLY_FIGURES = ("chrf", "tone", "on_topic", "repetition", "cut_off", "empty", "refusal", "reply_words")


@dataclass(frozen=True)
class ToneClassifiers:
    """Classifiers of tone: `of_fold[k]` has not seen the conversations k, k + FOLDS, ...; `of_all` has seen all.

    Empty where there are too few conversations to learn from.
    """

    of_fold: tuple[Tone, ...] = ()
    of_all: Tone | None = None

    def tone(self, replies: list[str]) -> Floats:
        """(n,) how much each reply sounds like the voice, by a classifier that has not seen its conversation."""
        found = np.zeros(len(replies))
        for fold, judge in enumerate(self.of_fold):
            off = judge.off(replies[fold::FOLDS])
            found[fold::FOLDS] = 1 - np.asarray(off, dtype=np.float64)
        empty = [not text.strip() for text in replies]
        found[empty] = 0.0
        return found


def learn_tone(questions: list[Question], base_replies: list[str]) -> ToneClassifiers:
    """Tell the voice's reference answers from what the base says to the same customers, cross-fitted."""
    everyone = range(len(questions))

    def judge(learned: list[int]) -> Tone | None:
        voice = [text for index in learned for text in questions[index].answers]
        return learn(voice, [base_replies[index] for index in learned if base_replies[index].strip()])

    folds = [judge([index for index in everyone if index % FOLDS != fold]) for fold in range(FOLDS)]
    of_fold = tuple(one for one in folds if one is not None)
    return ToneClassifiers(of_fold, judge(list(everyone))) if len(of_fold) == FOLDS else ToneClassifiers()


def of_scores(scores: list[Score]) -> dict[str, Sample]:
    """Loss (nats) and accuracy, both per assistant token."""
    tokens = np.array([score.tokens for score in scores], dtype=np.float64)
    return {
        "loss": Sample(np.array([score.nats for score in scores]), tokens),
        "accuracy": Sample(np.array([score.correct for score in scores], dtype=np.float64), tokens),
    }


def of_replies(questions: list[Question], answers: list[GeneratedReply], judges: ToneClassifiers) -> dict[str, Sample]:
    """The figures of replies; `tone` where there were enough conversations to learn it from."""
    texts = [answer.text for answer in answers]
    measured = [
        measure(question.prompt.messages, answer.text, answer.finish_reason)
        for question, answer in zip(questions, answers, strict=True)
    ]
    found = {name: mean_of([one[name] for one in measured]) for name in ("repetition", "cut_off", "empty", "refusal")}
    found["chrf"] = mean_of(chrf(texts, [question.reference for question in questions]))
    found["on_topic"] = mean_of(on_topic(questions, texts))
    found["reply_words"] = mean_of([len(text.split()) for text in texts])
    if judges.of_fold:
        found["tone"] = mean_of(judges.tone(texts))
    return {name: found[name] for name in REPLY_FIGURES if name in found}


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

    A conversation is its question with the reference answer; similarity is the cosine of tf-idf vectors of words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, analyzer=words_of)
    targets = words.fit_transform([f"{one.asked} {one.reference}" for one in questions])
    similar = (words.transform(replies) @ targets.T).toarray()
    own = similar.diagonal()[:, None]
    nearer = (own > similar) + 0.5 * (own == similar)
    return np.asarray((nearer.sum(axis=1) - 0.5) / max(1, len(questions) - 1))  # half a tie with itself


def words_of(text: str) -> list[str]:
    """Words in lower case; where a text has none its signs, so that none is without."""
    return re.findall(r"\w+", text.lower()) or re.findall(r"\S", text)
