"""What can be measured of an answer without knowing what is right: numbers in [0, 1], one by name."""

import math
import re
from typing import Any

LONGEST = 2000  # words; longer texts count as this long
GRAM = 4

# How assistants say that they will not or cannot, and what they say of themselves when they do.
REFUSAL = re.compile(
    r"\b(i\s*(can(no|')?t|am\s+(not\s+able|unable)|'m\s+(not\s+able|unable|sorry,?\s+but)|won'?t|will\s+not)"
    r"\s+(\w+\s+){0,3}(help|assist|answer|provide|do\s+that|comply|discuss|fulfil)"
    r"|as\s+an?\s+(ai|language\s+model)|i\s+must\s+decline|against\s+my\s+(guidelines|policy))",
    re.IGNORECASE,
)


def measure(prompt: list[Any], reply: str, finish_reason: str | None) -> dict[str, float]:
    """Signals of one chat answer.

    Lengths are on a logarithmic scale from no word to `LONGEST`; `repetition` is the share of a reply's sequences of
    four words that occurred before in it (Welleck et al. 2020, "rep-n").
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
    """The last thing the user said."""
    spoken = (text_of(one) for one in reversed(prompt) if isinstance(one, dict) and one.get("role") == "user")
    return next(spoken, "")


def asked_of(prompt: list[Any]) -> str:
    """Everything the user said in the conversation so far: what it is about is seldom in the last words alone."""
    return " ".join(text_of(one) for one in prompt if isinstance(one, dict) and one.get("role") == "user")


def text_of(message: dict[str, Any] | None) -> str:
    """A message's text; of one that is parts, the parts of text."""
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
