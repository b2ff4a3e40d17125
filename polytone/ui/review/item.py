"""An answer that waits for review, in words: what was asked, why someone should look, and what was said of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..markup import Safe, joined, listing, paragraph, table
from ..shell import ANONYMOUS

REASONS = {
    "thumbs_down": "someone gave it a thumb down",
    "disagreement": "thumbs disagree about it",
    "drift": "it is near a drift that was noticed",
    "random": "it was drawn by chance, to look at ordinary answers too",
}
STATES = ("open", "accepted", "edited", "rejected")
HEADERS = ("Reason", "Waiting", "Accepted", "Edited", "Rejected")
DRAWN = "Nothing waits for review. The next answer is drawn by chance."
EMPTY = (
    "Nothing waits for review, and there is no other answer to draw one from. Answers come here when someone gives a "
    "thumb down, when thumbs disagree, or when a drift is noticed."
)
NOT_KEPT = "The content policy of this voice does not keep texts: neither the question nor the answer can be shown."
NO_PROMPT = "The question was not kept, by the content policy of this voice."
NO_REPLY = "The answer was not kept, by the content policy of this voice: it cannot be edited here."
UNNAMED = " Enter your name at the top of the page, so that nobody else without one gets the same answers."
NOTHING_SAID = "Nobody has said anything of it."
CHOICES = {"a": "preferred to another answer", "b": "another answer was preferred", "tie": "as good as another answer"}


@dataclass(frozen=True)
class Held:
    """An item, and the name it is held under; whoever decides on it has to be the same."""

    item: dict[str, Any]
    reviewer: str

    @property
    def completion(self) -> str:
        return str(self.item["completion_id"])

    @property
    def reply(self) -> str | None:
        """The answer's text, or None where it was not kept."""
        reply = self.item.get("reply")
        return words_of(reply) if isinstance(reply, dict) else reply

    @property
    def missing(self) -> str:
        """What of the texts is not there, in a sentence; nothing if all is."""
        no_prompt, no_reply = not self.item.get("prompt"), self.reply is None
        if no_prompt and no_reply:
            return NOT_KEPT
        return NO_PROMPT if no_prompt else NO_REPLY if no_reply else ""

    def conversation(self) -> list[dict[str, Any]]:
        """What was asked, as Gradio's chatbot takes it; what neither side said has a title."""
        prompt = self.item.get("prompt")
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}] if prompt else []
        return [bubble(message) for message in messages if isinstance(message, dict)]

    def why(self) -> Safe:
        """Why it is in the queue, whose answer it is, and how long it is the reviewer's."""
        item = self.item
        reason = REASONS.get(item["reason"], item["reason"])
        until = f"Held for {self.reviewer} until {moment(item['leased_until'])} UTC."
        until += UNNAMED if self.reviewer == ANONYMOUS else ""
        return joined(
            paragraph(f"To review because {reason}."),
            paragraph(f"{item['version']} · answered {moment(item['at'])} UTC · {item['completion_id']}", "hint"),
            paragraph(until, "hint"),
        )

    def said(self) -> Safe:
        """What people and programs said of it and still stand by."""
        lines = list(map(statement, standing(self.item.get("feedback") or ())))
        return listing(lines) if lines else paragraph(NOTHING_SAID, "hint")


def bubble(message: Mapping[str, Any]) -> dict[str, Any]:
    role, text = str(message.get("role")), words_of(message)
    if role in ("user", "assistant"):
        return {"role": role, "content": text}
    return {"role": "assistant", "content": text, "metadata": {"title": f"{role.capitalize()} message"}}


def words_of(message: Mapping[str, Any]) -> str:
    """A message's text; parts that are no text and calls of tools are named."""
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


def standing(feedback: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without what was retracted or replaced."""
    gone = {one.get("supersedes") for one in feedback}
    return [one for one in feedback if one["id"] not in gone and one["key"] != "retract"]


def statement(given: Mapping[str, Any]) -> str:
    key, value, text = given["key"], given.get("value"), given.get("text")
    said = {
        "thumb": f"thumb {value}",
        "rating": f"rated {value} of 5",
        "tag": f"tag: {value}",
        "comment": f"“{text}”",
        "correction": f"corrected to: “{text}”",
        "preference": CHOICES.get(str(value), "both bad, this and another answer"),
    }.get(key, f"{key}: {value or text}")
    return f"{(given.get('annotator') or {}).get('id', 'someone')}: {said}"


def waiting(reviews: Sequence[Mapping[str, Any]]) -> str:
    """How many wait, by reason."""
    counts = {one["reason"]: one["count"] for one in reviews if one["state"] == "open"}
    if not counts:
        return DRAWN
    parts = [f"{counts[reason]} {name_of(reason).lower()}" for reason in reasons_of(counts) if reason in counts]
    return f"Waiting: {sum(counts.values())} ({', '.join(parts)})."


def queue_table(reviews: Sequence[Mapping[str, Any]]) -> Safe:
    """How many wait and what became of the others, by reason."""
    counts = {(one["reason"], one["state"]): one["count"] for one in reviews}
    reasons = reasons_of(reason for reason, _ in counts)
    rows = [(name_of(reason), *(counts.get((reason, state), 0) for state in STATES)) for reason in reasons]
    return table("Answers by reason", HEADERS, rows)


def reasons_of(found: Iterable[str]) -> list[str]:
    """The most pressing first; ones that are not known here last."""
    return [*REASONS, *sorted(set(found) - set(REASONS))]


def name_of(reason: str) -> str:
    return reason.replace("_", " ").capitalize()


def moment(when: str) -> str:
    """A time of the server's to the minute."""
    return str(when)[:16].replace("T", " ")
