"""Baselines of versions: the signals of the drift reference that training left in a version's folder.

Half of the reference trains the tone classifier; the other half gives its scores on replies it has not seen.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from polytone.contract.errors import PolytoneError
from polytone.contract.home import Home
from polytone.contract.manifest import read_manifest
from polytone.contract.reference import LEAST_ROWS, ReferenceRow, read_reference
from polytone.measure.signals import asked_of, measure
from polytone.measure.tone import Tone, learn
from polytone.serve.traffic.capture import AnswerSignals

from .detectors import LANGUAGE, TONE
from .embedding import Embedding

log = logging.getLogger(__name__)

KEPT = 500  # baselines in memory, of the versions that answered last


@dataclass(frozen=True)
class Baseline:
    """What is normal for a version. `values` are the signals of its reference, (n,) each.

    Empty for the base, and for a version with no reference or a very small one. The replies of the reference were cut
    at `max_tokens`; replies that are compared with them are cut there, too.
    """

    values: dict[str, Any] = field(default_factory=dict)
    language: str | None = None
    tone: Tone | None = None
    max_tokens: int | None = None


class Baselines:
    """Baselines by version, made on first use. `siblings` names versions of other voices for the tone classifier."""

    def __init__(self, home: Home, embed: Callable[[], Embedding], siblings: Callable[[str], list[str]]) -> None:
        self._home = home
        self._make_embedding = embed
        self._embedding: Embedding | None = None
        self._siblings = siblings
        self._baselines: OrderedDict[str, Baseline] = OrderedDict()

    @property
    def embed(self) -> Embedding:
        if self._embedding is None:
            self._embedding = self._make_embedding()
        return self._embedding

    def of(self, version: str) -> Baseline:
        """The version's baseline; takes about a second the first time."""
        if version not in self._baselines:
            self._baselines[version] = self._make(version)
        self._baselines.move_to_end(version)
        while len(self._baselines) > KEPT:
            self._baselines.popitem(last=False)
        return self._baselines[version]

    def measure(
        self, version: str, prompt: list[Any], reply: str, finish_reason: str | None, tokens: int
    ) -> AnswerSignals:
        """Signals and embeddings of one answer of `version`."""
        baseline = self.of(version)
        if baseline.max_tokens is not None and tokens > baseline.max_tokens:
            reply, finish_reason = reply[: len(reply) * baseline.max_tokens // tokens], "length"
        signals = measure(prompt, reply, finish_reason)
        if baseline.language is not None and reply.strip():
            signals[LANGUAGE] = float(language_of(reply) != baseline.language)
        if baseline.tone is not None and reply.strip():
            signals[TONE] = float(baseline.tone.off([reply])[0])
        vectors = self.embed([asked_of(prompt), reply])
        return AnswerSignals(signals, vectors.astype(np.float16).tobytes())

    def _make(self, version: str) -> Baseline:
        rows, max_tokens = self._reference(version)
        if len(rows) < LEAST_ROWS:
            return Baseline()
        sibling_replies = [row.reply for sibling in self._siblings(version) for row in self._reference(sibling)[0]]
        baseline = replace(make_baseline(rows, sibling_replies), max_tokens=max_tokens)
        log.info("%s: drift is measured against %d reference answers", version, len(rows))
        return baseline

    def _reference(self, version: str) -> tuple[list[ReferenceRow], int | None]:
        """The rows of a version's reference, and the number of tokens at which its replies were cut."""
        if "@" not in version:
            return [], None
        folder = self._home.adapter_folder(version)
        try:
            described = read_manifest(folder).drift_reference
            return (read_reference(folder), described.max_tokens) if described else ([], None)
        except (PolytoneError, OSError) as error:
            log.warning("%s: its drift reference cannot be read: %s", version, error)
            return [], None


def make_baseline(rows: list[ReferenceRow], siblings: list[str]) -> Baseline:
    """Measure a reference; `siblings` are replies of other voices."""
    prompts = [[message.model_dump() for message in row.messages] for row in rows]
    measured = [measure(prompt, row.reply, row.finish_reason) for prompt, row in zip(prompts, rows, strict=True)]
    values = {name: np.array([one[name] for one in measured]) for name in measured[0]}
    language = Counter(language_of(row.reply) for row in rows if row.reply.strip()).most_common(1)
    if language:
        main = language[0][0]
        values[LANGUAGE] = np.array([float(language_of(row.reply) != main) for row in rows if row.reply.strip()])
    teaching, judging = rows[::2], [row.reply for row in rows[1::2] if row.reply.strip()]
    tone = learn([row.reply for row in teaching], [row.base_reply for row in teaching] + siblings)
    if tone is not None and judging:
        values[TONE] = tone.off(judging)
    return Baseline(
        values=values,
        language=language[0][0] if language else None,
        tone=tone if TONE in values else None,
    )


def language_of(text: str) -> str:
    import py3langid

    return str(py3langid.classify(text)[0])
