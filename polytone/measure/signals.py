"""Signals of an answer that need no reference: numbers in [0, 1] by name."""

import math
import re
from typing import Any

LONGEST = 2000  # words; longer texts are counted as this long
GRAM = 4

# Typical refusals, and what assistants say about themselves in them.
REFUSAL = re.compile(
    r"\b(i\s*(can(no|')?t|am\s+(not\s+able|unable)|'m\s+(not\s+able|unable|sorry,?\s+but)|won'?t|will\s+not)"
    r"\s+(\w+\s+){0,3}(help|assist|answer|provide|do\s+that|comply|discuss|fulfil)"
    r"|as\s+an?\s+(ai|language\s+model)|i\s+must\s+decline|against\s+my\s+(guidelines|policy))",
    re.IGNORECASE,
)


def measure(prompt: list[Any], reply: str, finish_reason: str | None) -> dict[str, float]:
    """Signals of one chat answer, each in [0, 1].

    Lengths are on a logarithmic scale from 0 to `LONGEST` words. `repetition` is the share of four-word sequences in
    the reply that occurred in it before (rep-n of Welleck et al. 2020).
    """
    words = reply.split()
    return {
        "prompt_length": length(len(question_of(prompt).split())),
        "reply_length": length(len(words)),
        "cut_off": float(finish_reason == "length"),
        "empty": float(not words),
        "repetition": repetition(words),
        "refusal": float(REFUSAL.search(reply.replace("\u2019", "'")) is not None),
    }


def question_of(prompt: list[Any]) -> str:
    """The text of the last user message."""
    texts = (text_of(one) for one in reversed(prompt) if isinstance(one, dict) and one.get("role") == "user")
    return next(texts, "")


def asked_of(prompt: list[Any]) -> str:
    """The text of all user messages: the last one alone seldom shows what the conversation is about."""
    return " ".join(text_of(one) for one in prompt if isinstance(one, dict) and one.get("role") == "user")


def text_of(message: dict[str, Any] | None) -> str:
    """The text of a message; the text parts if its content is a list of parts."""
    content: Any = (message or {}).get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content if isinstance(part, dict))


def length(words: int) -> float:
    return math.log1p(min(words, LONGEST)) / math.log1p(LONGEST)


def words_of(value: float) -> float:
    """The number of words that `length` maps to `value`."""
    return math.expm1(value * math.log1p(LONGEST))


def repetition(words: list[str]) -> float:
    grams = [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
