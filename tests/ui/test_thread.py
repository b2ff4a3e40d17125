"""A conversation as a tree: what a request is made of, and what is kept of it."""

from polytone.ui.thread import LONGEST_REQUEST, Thread, Turn, kept_request, thread_of


def grown() -> Thread:
    """A question with two answers, the second of which was followed up."""
    thread = Thread("conv_1").with_turn(Turn("q", None, "user", "Where is it?"))
    thread = thread.with_turn(Turn("a1", "q", "assistant", "Here."))
    thread = thread.with_turn(Turn("a2", "q", "assistant", "There."))
    return thread.with_turn(Turn("q2", "a2", "user", "Where is there?"))


def test_a_request_has_the_way_to_its_question_only() -> None:
    thread = grown()
    assert [message["content"] for message in thread.messages("q2")] == ["Where is it?", "There.", "Where is there?"]
    assert [message["content"] for message in thread.messages("a1")] == ["Where is it?", "Here."]


def test_an_answer_that_never_came_is_no_message() -> None:
    thread = grown().with_turn(Turn("a3", "q2", "assistant", ""))
    assert [message["role"] for message in thread.messages()] == ["user", "assistant", "user"]


def test_branches_are_walked_in_order_and_end_at_the_ends() -> None:
    thread = grown()
    assert thread.place() == (2, 2)
    first = thread.beside(-1)
    assert (first.head, first.place()) == ("a1", (1, 2))
    assert first.beside(-1) == first
    assert first.beside(1).head == "q2"


def test_what_is_kept_makes_the_same_thread() -> None:
    thread = grown()
    turns = [{**turn.as_json(), "at": "2026-01-01"} for turn in thread.turns.values()]
    again = thread_of({"id": "conv_1", "title": "", "turns": turns})
    assert again.messages() == thread.messages()
    assert again.place() == thread.place()


def test_a_long_history_is_not_kept_with_every_answer() -> None:
    """A request of 64 kB in the details of its answer was refused, and the answer was not kept at all."""
    short = {"model": "acme", "messages": [{"role": "user", "content": "Hello"}]}
    long = {"model": "acme", "messages": [{"role": "user", "content": "x" * LONGEST_REQUEST}]}
    assert kept_request({"request": short}) == short
    assert len(str(kept_request({"request": long}))) < 200
