"""Dataset rows survive being written and read."""

from hypothesis import given
from hypothesis import strategies as st

from polytone.contract.rows import Conversation


@given(st.lists(st.text().filter(str.strip), min_size=1, max_size=6))
def test_alternating_turns_survive_a_round_trip(texts: list[str]) -> None:
    messages = [{"role": role, "content": text} for text in texts for role in ("user", "assistant")]
    conversation = Conversation.model_validate({"messages": messages})
    assert Conversation.model_validate_json(conversation.model_dump_json()).as_dicts() == messages
