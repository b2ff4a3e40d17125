"""One answer as it left the server, and the row it leaves: what its voice's content policy keeps, and its signals."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from polytone.contract.digests import digest_text
from polytone.measure.signals import text_of
from polytone.serve.engine.base import Body

log = logging.getLogger(__name__)

PROMPT_FIELDS = ("messages", "prompt")
CONTENT = frozenset({*PROMPT_FIELDS, "model", "user", "tools", "metadata"})
NUMBERS = frozenset({
    "temperature", "top_p", "top_k", "min_p", "seed", "n", "max_tokens", "max_completion_tokens", "min_tokens",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "stream", "ignore_eos",
})  # fmt: skip


class Policy(StrEnum):
    """What of an answer's content is kept: the texts, hashes by which a text is found again, or neither."""

    FULL = "full"
    HASHED = "hashed"
    NONE = "none"


@dataclass(frozen=True)
class Policies:
    """The content policy of each voice."""

    usual: Policy = Policy.FULL
    of: Mapping[str, Policy] = field(default_factory=dict)

    def for_voice(self, adapter: str) -> Policy:
        return self.of.get(adapter, self.usual)


@dataclass(frozen=True)
class CompletionRef:
    """Whose answer a completion id names, and the conversation it is part of."""

    adapter: str
    version: str
    conversation: str | None = None


@dataclass(frozen=True)
class RecordedAnswer:
    """One answer as it left the server."""

    id: str
    at: datetime
    ref: CompletionRef
    base: str
    key: str | None
    status: int
    request: Body
    reply: Body
    finish_reason: str | None
    usage: tuple[int, int]
    first_token_seconds: float | None
    seconds: float
    bytes: int = 0


@dataclass(frozen=True)
class AnswerSignals:
    """What the drift detectors need of an answer: signals in [0, 1] by name, and two embeddings as bytes."""

    signals: dict[str, float]
    vectors: bytes


Measure = Callable[[str, Any, str, str | None, int], AnswerSignals]


def row_of(captured: RecordedAnswer, policy: Policy, measure: Measure | None) -> dict[str, Any]:
    """The columns of `AnswerRow`."""
    ref, request = captured.ref, captured.request
    reply, finish_reason = captured.reply, captured.finish_reason
    prompt = next((request[name] for name in PROMPT_FIELDS if name in request), None)
    measured = measured_of(captured, measure, text_of(reply), finish_reason)
    full, hashed = policy is Policy.FULL, policy is Policy.HASHED
    return {
        "id": captured.id,
        "at": captured.at,
        "conversation": name_kept(ref.conversation, policy),
        "voice": ref.adapter,
        "version": ref.version,
        "base": captured.base,
        "key": captured.key,
        "policy": policy.value,
        "status": captured.status,
        "parameters": {k: v for k, v in request.items() if (full and k not in CONTENT) or k in NUMBERS},
        "prompt": prompt if full else None,
        "reply": reply if full else None,
        "prompt_sha256": digest_text(json.dumps(prompt, sort_keys=True)) if full or hashed else None,
        "reply_sha256": digest_text(text_of(reply)) if full or hashed else None,
        "prompt_tokens": captured.usage[0],
        "completion_tokens": captured.usage[1],
        "finish_reason": finish_reason,
        "first_token_seconds": captured.first_token_seconds,
        "seconds": captured.seconds,
        "signals": measured.signals if measured else None,
        "vectors": measured.vectors if measured and policy is not Policy.NONE else None,
        "observed": measured is None,
    }


def name_kept(conversation: str | None, policy: Policy) -> str | None:
    """A conversation's name may be a person's."""
    return conversation if policy is Policy.FULL or conversation is None else digest_text(conversation)


def measured_of(
    captured: RecordedAnswer, measure: Measure | None, reply: str, finish_reason: str | None
) -> AnswerSignals | None:
    """Only whole chat answers in words are measured: one that was broken off says nothing of the voice, a call of a
    tool has no words, and of several choices the tokens are not known apart."""
    prompt = captured.request.get("messages")
    if measure is None or captured.status != 200 or not isinstance(prompt, list):
        return None
    if finish_reason == "tool_calls" or captured.request.get("n") not in (None, 1):
        return None
    try:
        return measure(captured.ref.version, prompt, reply, finish_reason, captured.usage[1])
    except Exception:  # one odd answer must not hold up all others
        log.exception("%s could not be measured", captured.id)
        return None
