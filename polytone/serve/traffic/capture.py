"""Recorded answers, and the table row made of one: its content as the policy allows, and its signals."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from polytone.measure.signals import question_of, text_of
from polytone.serve.engine.base import Body

from .content_policy import Policy, stored_name
from .text_hash import TextHasher

log = logging.getLogger(__name__)

PROMPT_FIELDS = ("messages", "prompt")
CONTENT = frozenset({*PROMPT_FIELDS, "model", "user", "tools", "metadata"})
NUMBERS = frozenset({
    "temperature", "top_p", "top_k", "min_p", "seed", "n", "max_tokens", "max_completion_tokens", "min_tokens",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "stream", "ignore_eos",
})  # fmt: skip


@dataclass(frozen=True)
class CompletionRef:
    """The voice and version behind a completion id, and the conversation it is part of."""

    adapter: str
    version: str
    conversation: str | None = None


@dataclass(frozen=True)
class RecordedAnswer:
    """One answer as it left the server. `usage` counts prompt and completion tokens."""

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
    """Input of the drift detectors: signals in [0, 1] by name, and the embeddings of prompt and reply as bytes."""

    signals: dict[str, float]
    vectors: bytes


Measure = Callable[[str, Any, str, str | None, int], AnswerSignals]


def row_of(recorded: RecordedAnswer, policy: Policy, measure: Measure | None, hasher: TextHasher) -> dict[str, Any]:
    """The columns of `AnswerRow`."""
    ref, request = recorded.ref, recorded.request
    reply, finish_reason = recorded.reply, recorded.finish_reason
    prompt = next((request[name] for name in PROMPT_FIELDS if name in request), None)
    measured = signals_of(recorded, measure, text_of(reply), finish_reason)
    full, hashed = policy is Policy.FULL, policy is Policy.HASHED
    return {
        "id": recorded.id,
        "at": recorded.at,
        "conversation": stored_name(ref.conversation, policy),
        "voice": ref.adapter,
        "version": ref.version,
        "base": recorded.base,
        "key": recorded.key,
        "policy": policy.value,
        "status": recorded.status,
        "parameters": {k: v for k, v in request.items() if (full and k not in CONTENT) or k in NUMBERS},
        "prompt": prompt if full else None,
        "reply": reply if full else None,
        "prompt_sha256": hasher.hash(last_question(prompt)) if full or hashed else None,
        "reply_sha256": hasher.hash(text_of(reply)) if full or hashed else None,
        "prompt_tokens": recorded.usage[0],
        "completion_tokens": recorded.usage[1],
        "finish_reason": finish_reason,
        "first_token_seconds": recorded.first_token_seconds,
        "seconds": recorded.seconds,
        "signals": measured.signals if measured else None,
        "vectors": measured.vectors if measured and policy is not Policy.NONE else None,
        "observed": measured is None,
    }


def last_question(prompt: Any) -> str:
    """The user's last message, or the whole prompt of a text completion."""
    return question_of(prompt) if isinstance(prompt, list) else str(prompt or "")


def signals_of(
    recorded: RecordedAnswer, measure: Measure | None, reply: str, finish_reason: str | None
) -> AnswerSignals | None:
    """Measure an answer; None unless it is a whole chat answer in words.

    A broken-off answer says nothing about the voice, a tool call has no words, and the tokens of several choices are
    only known in sum.
    """
    prompt = recorded.request.get("messages")
    if measure is None or recorded.status != 200 or not isinstance(prompt, list):
        return None
    if finish_reason == "tool_calls" or recorded.request.get("n") not in (None, 1):
        return None
    try:
        return measure(recorded.ref.version, prompt, reply, finish_reason, recorded.usage[1])
    except Exception:  # one odd answer must not hold up the others
        log.exception("%s could not be measured", recorded.id)
        return None
