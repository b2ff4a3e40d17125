"""An answer in the review queue, in words: its conversation, the reason for the review, and its feedback."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..markup import Html, joined, listing, paragraph, table
from ..shell import ANONYMOUS
from ..wording import minute

REASONS = {
    "thumbs_down": "it got a thumb down",
    "disagreement": "thumbs disagree about it",
    "drift": "it is near a detected drift",
    "random": "it was drawn at random, to see ordinary answers too",
}
STATES = ("open", "accepted", "edited", "rejected")
HEADERS = ("Reason", "Waiting", "Accepted", "Edited", "Rejected")
RANDOM = "The review queue is empty. The next answer is drawn at random."
EMPTY = (
    "The review queue is empty, and there is no other answer to draw. Answers come here when they get a thumb down, "
    "when thumbs disagree, or when drift is detected."
)
NOT_KEPT = "The content policy of this voice keeps no texts, so question and answer cannot be shown."
NO_PROMPT = "The content policy of this voice did not keep the question."
NO_REPLY = "The content policy of this voice did not keep the answer, so it cannot be edited here."
NO_NAME = " Enter your name at the top of the page; everyone without a name shares the same answers."
NO_FEEDBACK = "No feedback yet."
CHOICES = {"a": "preferred to another answer", "b": "another answer was preferred", "tie": "as good as another answer"}


@dataclass(frozen=True)
class LeasedReview:
    """An item of the queue, and the reviewer with the lease on it, who alone may decide."""

    item: dict[str, Any]
    reviewer: str

    @property
    def completion(self) -> str:
        return str(self.item["completion_id"])

    @property
    def reply(self) -> str | None:
        """The text of the answer; None if it was not kept."""
        reply = self.item.get("reply")
        return words_of(reply) if isinstance(reply, dict) else reply

    @property
    def missing(self) -> str:
        """A sentence about texts that were not kept; empty if all were."""
        no_prompt, no_reply = not self.item.get("prompt"), self.reply is None
        if no_prompt and no_reply:
            return NOT_KEPT
        return NO_PROMPT if no_prompt else NO_REPLY if no_reply else ""

    def conversation(self) -> list[dict[str, Any]]:
        """The conversation as Gradio's chatbot takes it; messages of neither side have a title."""
        prompt = self.item.get("prompt")
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}] if prompt else []
        return [bubble(message) for message in messages if isinstance(message, dict)]

    def reason(self) -> Html:
        """The reason for the review, the version that answered, and the end of the lease."""
        item = self.item
        words = REASONS.get(item["reason"], item["reason"])
        until = f"Reserved for {self.reviewer} until {minute(item['leased_until'])} UTC."
        until += NO_NAME if self.reviewer == ANONYMOUS else ""
        return joined(
            paragraph(f"Reason for review: {words}."),
            paragraph(f"{item['version']} · answered {minute(item['at'])} UTC · {item['completion_id']}", "hint"),
            paragraph(until, "hint"),
        )

    def feedback(self) -> Html:
        """The current feedback on the answer."""
        lines = list(map(statement, current(self.item.get("feedback") or ())))
        return listing(lines) if lines else paragraph(NO_FEEDBACK, "hint")


def bubble(message: Mapping[str, Any]) -> dict[str, Any]:
    role, text = str(message.get("role")), words_of(message)
    if role in ("user", "assistant"):
        return {"role": role, "content": text}
    return {"role": "assistant", "content": text, "metadata": {"title": f"{role.capitalize()} message"}}


def words_of(message: Mapping[str, Any]) -> str:
    """The text of a message; other parts and calls of tools are named."""
    content = message.get("content") or ""
    parts = [content] if isinstance(content, str) else [words_of_part(part) for part in content]
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        parts.append(f"[calls {function.get('name')} with {function.get('arguments')}]")
    return "\n\n".join(part for part in parts if part)


def words_of_part(part: Any) -> str:
    if not isinstance(part, dict):
        return str(part)
    return str(part["text"]) if part.get("text") else f"[{part.get('type', 'no text')}]"


def current(feedback: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The feedback without what was retracted or replaced."""
    replaced = {one.get("supersedes") for one in feedback}
    return [one for one in feedback if one["id"] not in replaced and one["key"] != "retract"]


def statement(feedback: Mapping[str, Any]) -> str:
    key, value, text = feedback["key"], feedback.get("value"), feedback.get("text")
    words = {
        "thumb": f"thumb {value}",
        "rating": f"rated {value} of 5",
        "tag": f"tag: {value}",
        "comment": f"“{text}”",
        "correction": f"corrected to: “{text}”",
        "preference": CHOICES.get(str(value), "both bad, this and another answer"),
    }.get(key, f"{key}: {value or text}")
    return f"{(feedback.get('annotator') or {}).get('id', 'someone')}: {words}"


def waiting(reviews: Sequence[Mapping[str, Any]]) -> str:
    """The length of the queue, by reason."""
    counts = {one["reason"]: one["count"] for one in reviews if one["state"] == "open"}
    if not counts:
        return RANDOM
    parts = [f"{counts[reason]} {name_of(reason).lower()}" for reason in reasons_of(counts) if reason in counts]
    return f"Waiting: {sum(counts.values())} ({', '.join(parts)})."


def queue_table(reviews: Sequence[Mapping[str, Any]]) -> Html:
    """Answers in the queue and decisions on others, by reason."""
    counts = {(one["reason"], one["state"]): one["count"] for one in reviews}
    reasons = reasons_of(reason for reason, _ in counts)
    rows = [(name_of(reason), *(counts.get((reason, state), 0) for state in STATES)) for reason in reasons]
    return table("Answers by reason", HEADERS, rows)


def reasons_of(present: Iterable[str]) -> list[str]:
    """The most urgent reason first, unknown ones last."""
    return [*REASONS, *sorted(set(present) - set(REASONS))]


def name_of(reason: str) -> str:
    return reason.replace("_", " ").capitalize()
