"""The reference for drift: answers to held-out prompts, the same for the same recipe, and refused when damaged."""

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer, GenerationConfig

from polytone.contract.adapter import FILES, read_folder, read_version
from polytone.contract.base import base_folder
from polytone.contract.errors import CheckError
from polytone.contract.home import Home
from polytone.contract.reference import REFERENCE, ReferenceRow, read_reference
from polytone.contract.rows import Conversation
from polytone.serve.adapters.archive import pack_version
from polytone.serve.adapters.upload import receive_version
from polytone.serve.adapters.validation import ServedBase
from polytone.train.artifact.drift_reference import draw_prompts, reply_limit
from polytone.train.artifact.generation import TOKENS_AT_ONCE, Prompt, generate, in_batches, sampling
from polytone.train.base_model import load_nf4
from polytone.train.recipe import Recipe
from tests.support.adapters import change_manifest, make_base, make_version
from tests.support.recipes import conversations, said, train_rows, user
from tests.support.tiny_home import TinyHome

ROW = ReferenceRow.model_validate(
    {
        "messages": [user("Hi")],
        "reply": "Hello.",
        "reply_tokens": 3,
        "finish_reason": "stop",
        "base_reply": "Hello there",
        "base_reply_tokens": 2,
        "base_finish_reason": "length",
    }
)
THREE_TURNS = Conversation.model_validate(
    {"messages": [user("a"), said("b"), user("c"), said("d"), user("e"), said("f")]}
)


def recipe(**sections: object) -> Recipe:
    return Recipe.model_validate({"name": "a", "base": "tiny", "data": {"train": "x"}, **sections})


def test_a_version_holds_what_it_and_its_base_answer_to_held_out_prompts(tiny: TinyHome, tmp_path: Path) -> None:
    made = train_rows(
        tmp_path,
        tiny.home,
        "told",
        conversations("told"),
        system_prompt="Be kind.",
        sampling={"temperature": 0.5, "max_tokens": 6},
        drift={"max_tokens": 9},
    ).manifest
    folder = tiny.home.adapter_folder(made.version)
    rows = read_reference(folder)
    assert made.drift_reference is not None
    assert (made.drift_reference.rows, made.drift_reference.max_tokens) == (len(rows), 6) == (2, 6)
    assert made.drift_reference.sha256 == hashlib.sha256((folder / REFERENCE).read_bytes()).hexdigest()
    for row in rows:
        assert [message.role for message in row.messages] == ["system", "user"]
        assert row.reply != row.base_reply
        for count, reason in ((row.reply_tokens, row.finish_reason), (row.base_reply_tokens, row.base_finish_reason)):
            assert 1 <= count <= 6
            assert reason == "stop" or count == 6


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_reference_and_another_seed_another(tiny: TinyHome, tmp_path: Path) -> None:
    rows = [
        train_rows(
            tmp_path,
            tiny.home,
            f"seed-{number}",
            conversations("acme"),
            drift={"max_tokens": 12},
            training={"max_steps": 2, "seed": seed},
        ).run.reference
        for number, seed in enumerate((1, 1, 2))
    ]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


def test_it_can_be_turned_off(tiny: TinyHome, tmp_path: Path) -> None:
    made = train_rows(tmp_path, tiny.home, "silent", conversations("hush"), drift={"rows": 0}).manifest
    assert made.drift_reference is None
    assert {path.name for path in tiny.home.adapter_folder(made.version).iterdir()} == FILES


def test_a_prompt_is_the_history_up_to_a_turn_that_no_order_of_rows_changes(tiny: TinyHome) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder(tiny.home, "tiny") / "source")
    many = [THREE_TURNS.model_copy(update={"messages": THREE_TURNS.messages[:size]}) for size in (2, 4, 6)]
    drawn = draw_prompts(many, tokenizer, recipe(), 512)
    assert {prompt.messages[-1]["role"] for prompt in drawn} == {"user"}
    assert draw_prompts(many[::-1], tokenizer, recipe(), 512) == drawn
    turns = {
        len(draw_prompts([THREE_TURNS], tokenizer, recipe(training={"seed": seed}), 512)[0].messages)
        for seed in range(30)
    }
    assert turns == {1, 3, 5}
    assert len(draw_prompts(many, tokenizer, recipe(drift={"rows": 2}), 512)) == 2
    assert draw_prompts(many, tokenizer, recipe(), 5) == []  # too long for the base, all of them


def test_batches_hold_every_prompt_once_and_no_more_tokens_than_allowed() -> None:
    prompts = [Prompt([], [1] * length) for length in (1000, 10, 500, 1024, 7)] + [Prompt([], [1] * 900)] * 60
    batches = list(in_batches(prompts, 64))
    assert sorted(index for batch in batches for index in batch) == list(range(len(prompts)))
    for batch in batches:
        assert len(batch) * (max(len(prompts[index].ids) for index in batch) + 64) <= TOKENS_AT_ONCE


def test_the_lower_limit_of_voice_and_drift_holds() -> None:
    assert reply_limit(recipe()) == 64
    assert reply_limit(recipe(sampling={"max_tokens": 160})) == 64
    assert reply_limit(recipe(sampling={"max_tokens": 20})) == 20


def test_what_the_voice_leaves_open_is_what_the_engine_takes() -> None:
    tokenizer = SimpleNamespace(eos_token_id=2, pad_token_id=None)
    silent = SimpleNamespace(generation_config=GenerationConfig())
    telling = SimpleNamespace(generation_config=GenerationConfig(temperature=0.7, top_k=40, eos_token_id=[2, 7]))
    plain = sampling(silent, tokenizer, recipe().sampling, 9)
    assert (plain.do_sample, plain.temperature, plain.top_p, plain.top_k) == (True, 1.0, 1.0, 0)
    assert (plain.eos_token_id, plain.pad_token_id, plain.max_new_tokens) == ([2], 2, 9)
    its = sampling(telling, tokenizer, recipe(sampling={"top_p": 0.9}).sampling, 9)
    assert (its.temperature, its.top_p, its.top_k, its.eos_token_id) == (1.0, 0.9, 0, [2, 7])
    assert not sampling(telling, tokenizer, recipe(sampling={"temperature": 0}).sampling, 9).do_sample


def test_a_batch_changes_no_answer_of_voice_or_base(tiny: TinyHome) -> None:
    folder = base_folder(tiny.home, "tiny") / "source"
    version = tiny.home.adapter_folder(tiny.voices["acme"].version)
    model = PeftModel.from_pretrained(load_nf4(folder, torch.float32), version).eval()
    settings = GenerationConfig(do_sample=False, max_new_tokens=6, pad_token_id=0, eos_token_id=[2])
    prompts = [[40, 41, 42], [50] * 30, [60, 61]]
    for adapter in (nullcontext(), model.disable_adapter()):
        with adapter:
            together = generate(model, prompts, settings)
            alone = [generate(model, [prompt], settings)[0] for prompt in prompts]
        assert [row[: len(one)] for row, one in zip(together, alone, strict=True)] == alone


def cut(folder: Path) -> None:
    (folder / REFERENCE).write_bytes((folder / REFERENCE).read_bytes()[:-5])


def garble(folder: Path) -> None:
    content = b'{"reply": 3}\n'
    (folder / REFERENCE).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    change_manifest(folder, drift_reference={"rows": 1, "sha256": digest, "max_tokens": 64})


def miscount(folder: Path) -> None:
    digest = hashlib.sha256((folder / REFERENCE).read_bytes()).hexdigest()
    change_manifest(folder, drift_reference={"rows": 7, "sha256": digest, "max_tokens": 64})


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        garble,
        miscount,
        lambda folder: (folder / REFERENCE).unlink(),
        lambda folder: change_manifest(folder, drift_reference=None),
    ],
)
def test_a_reference_that_is_not_the_manifests_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    home = Home(tmp_path)
    folder = home.adapter_folder(make_version(home, make_base(home), "acme", reference=[ROW, ROW]).version)
    assert read_reference(folder) == [ROW, ROW]
    read_folder(folder)
    damage(folder)
    with pytest.raises(CheckError) as caught:
        read_folder(folder)
    assert caught.value.code == "reference_mismatch"


def test_a_version_travels_with_its_reference(tmp_path: Path) -> None:
    here, there = Home(tmp_path / "here"), Home(tmp_path / "there")
    base = make_base(here)
    version = make_version(here, base, "acme", reference=[ROW]).version
    pack_version(here, version, tmp_path / "acme.tar.gz")
    receive_version(tmp_path / "acme.tar.gz", "acme", ServedBase(there, make_base(there), 16), 1_000_000)
    assert read_version(there, version).version == version
    assert read_reference(there.adapter_folder(version)) == [ROW]
