"""Events of the engine: parsed once, passed on byte for byte."""

import pytest

from polytone.serve.engine.events import ReplyBuilder, StreamEvent, parse_event

CHUNK = 'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"say \\"usage\\":{ now"}}]}\n\n'


def test_a_chunk_has_its_choices_and_its_text_as_it_came() -> None:
    event = parse_event(CHUNK)
    assert (event.text, event.id, event.usage, event.error, event.done) == (CHUNK, "c1", None, None, False)
    assert [choice["delta"]["content"] for choice in event.choices] == ['say "usage":{ now']


def test_usage_is_read_whatever_the_white_space() -> None:
    event = parse_event('data: {"id": "c1", "choices": [], "usage": {"prompt_tokens": 3}}\n\n')
    assert (event.choices, event.usage) == ((), {"prompt_tokens": 3})


def test_an_error_is_read_wherever_it_stands_in_its_object() -> None:
    event = parse_event('data: { "object": "error", "error": {"message": "too long", "code": 400}}\n\n')
    assert event.error == {"message": "too long", "code": 400}


def test_the_last_event_is_known() -> None:
    assert parse_event("data: [DONE]\n\n") == StreamEvent("data: [DONE]\n\n", done=True)


@pytest.mark.parametrize("text", [": ping\n\n", "data: {broken\n\n", "data: \n\n"])
def test_what_is_not_an_object_is_passed_on(text: str) -> None:
    assert parse_event(text) == StreamEvent(text)


def test_a_reply_is_of_the_first_choice_only() -> None:
    reply = ReplyBuilder()
    for index, piece in ((0, "Good "), (1, "Hey"), (0, "day")):
        reply.add(StreamEvent("", "c1", [{"index": index, "delta": {"content": piece}, "finish_reason": None}]))
    reply.add(StreamEvent("", "c1", [{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    assert reply.message() == {"role": "assistant", "content": "Good day"}
    assert (reply.completion, reply.finish_reason) == ("c1", "stop")
