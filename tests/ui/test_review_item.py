"""An answer that waits for review, in words."""

from typing import Any

from polytone.ui.review.item import (
    NO_FEEDBACK,
    NO_PROMPT,
    NO_REPLY,
    NOT_KEPT,
    RANDOM,
    LeasedReview,
    queue_table,
    waiting,
)


def leased(**changes: Any) -> LeasedReview:
    item: dict[str, Any] = {
        "completion_id": "chatcmpl-1",
        "version": "acme@111111111111",
        "reason": "thumbs_down",
        "leased_until": "2026-03-01T10:15:30+00:00",
        "at": "2026-03-01T09:00:00+00:00",
        "prompt": [{"role": "user", "content": "Where is my parcel?"}],
        "reply": {"role": "assistant", "content": "On its way."},
        "feedback": [],
    }
    return LeasedReview({**item, **changes}, "Robin")


def said(key: str, value: Any = None, text: str | None = None, number: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": f"fb-{number}", "key": key, "value": value, "text": text, "annotator": {"id": "ann"}, **more}


def test_why_it_waits_is_said_and_until_when_it_is_held() -> None:
    reason = leased().reason()
    assert "it got a thumb down" in reason
    assert "Reserved for Robin until 2026-03-01 10:15 UTC." in reason
    assert "acme@111111111111" in reason


def test_what_was_said_leaves_out_what_no_longer_holds() -> None:
    feedback = [
        said("thumb", "down", number=1),
        said("tag", "rude", number=2),
        said("comment", text="<b>Too</b> stiff", number=3),
        said("thumb", "up", number=4, supersedes="fb-1"),
        said("retract", number=5, supersedes="fb-2"),
        said("preference", "b", number=6),
    ]
    words = leased(feedback=feedback).feedback()
    assert "ann: thumb up" in words
    assert "&lt;b&gt;Too&lt;/b&gt; stiff" in words
    assert "another answer was preferred" in words
    assert "thumb down" not in words
    assert "rude" not in words
    assert NO_FEEDBACK in leased().feedback()


def test_a_conversation_is_shown_with_what_neither_side_said_in_a_fold() -> None:
    prompt = [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": "{}"}}]},
    ]
    system, user, call = leased(prompt=prompt).conversation()
    assert system == {"role": "assistant", "content": "Be brief", "metadata": {"title": "System message"}}
    assert user == {"role": "user", "content": "Look\n\n[image_url]"}
    assert call == {"role": "assistant", "content": "[calls find with {}]"}
    assert leased(prompt="Once upon").conversation() == [{"role": "user", "content": "Once upon"}]


def test_texts_that_were_not_kept_are_named() -> None:
    assert leased().missing == ""
    assert leased(prompt=None, reply=None).missing == NOT_KEPT
    assert leased(prompt=None).missing == NO_PROMPT
    assert leased(reply=None).missing == NO_REPLY
    assert leased(reply=None).reply is None


def test_the_queue_is_counted_by_reason() -> None:
    counts = [
        {"reason": "thumbs_down", "state": "open", "count": 2},
        {"reason": "drift", "state": "open", "count": 1},
        {"reason": "random", "state": "accepted", "count": 4},
    ]
    assert waiting(counts) == "Waiting: 3 (2 thumbs down, 1 drift)."
    assert waiting([]) == RANDOM
    assert waiting(counts[2:]) == RANDOM
    assert 'data-label="Accepted">4<' in queue_table(counts)
