"""The example conversations: enough of them, the same customers for every brand, no sentence written twice."""

import json
import re
from pathlib import Path

import pytest

from polytone.contract.rows import Conversation
from polytone.train.dataset.training_rows import read_conversations

EXAMPLES = Path(__file__).parents[2] / "examples"
BRANDS = sorted(path.parent.name for path in EXAMPLES.glob("*/recipe.yaml"))


def rows(brand: str, split: str) -> list[Conversation]:
    return read_conversations(EXAMPLES / brand / f"{split}.jsonl").rows


def replies(brand: str) -> list[str]:
    both = rows(brand, "train") + rows(brand, "held_out")
    return [message.content for row in both for message in row.messages if message.role == "assistant"]


@pytest.mark.parametrize("brand", BRANDS)
def test_there_are_enough_conversations_and_a_quarter_has_several_turns(brand: str) -> None:
    train, held_out = rows(brand, "train"), rows(brand, "held_out")
    assert len(train) >= 120
    assert len(held_out) >= 30
    for split in (train, held_out):
        assert sum(len(row.messages) > 2 for row in split) >= len(split) / 4


def test_every_brand_answers_the_same_customers() -> None:
    """Only the tone differs: intents and customers' turns are equal, row by row."""
    for split in ("train", "held_out"):
        asked = [
            [(row.model_extra, [m.content for m in row.messages if m.role == "user"]) for row in rows(brand, split)]
            for brand in BRANDS
        ]
        assert all(one == asked[0] for one in asked)
        assert len({extra["intent"] for extra, _ in asked[0] if extra}) == 30


@pytest.mark.parametrize("brand", BRANDS)
def test_no_sentence_is_used_twice_and_nothing_is_a_placeholder(brand: str) -> None:
    sentences = [s.strip() for reply in replies(brand) for s in re.split(r"(?<=[.!?])\s+", reply) if len(s.split()) > 2]
    assert len(sentences) == len(set(sentences))
    text = json.dumps(replies(brand))
    assert not re.search(r"\[[A-Za-z ]+\]|XXX|lorem|TODO|<[a-z]+>", text)


def test_held_out_customers_are_not_among_the_training_ones() -> None:
    first = {split: {row.messages[0].content for row in rows(BRANDS[0], split)} for split in ("train", "held_out")}
    assert not first["train"] & first["held_out"]
