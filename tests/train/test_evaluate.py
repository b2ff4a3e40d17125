"""Evaluation on a real base that knows something: three verdicts, what is written, and every figure's law."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from polytone.contract.errors import CheckError, InputError
from polytone.contract.evaluation import read_verdict
from polytone.contract.home import Home
from polytone.contract.manifest import Manifest
from polytone.contract.rows import Conversation
from polytone.train.base_model import prepare_base
from polytone.train.dataset.training_rows import RowFile, read_conversations
from polytone.train.evaluation.bias import pairs
from polytone.train.evaluation.compare import Extent
from polytone.train.evaluation.evaluate import Evaluated, evaluate_version
from polytone.train.evaluation.gates import gates_of
from polytone.train.recipe import GatesSection
from polytone.train.runs.record import held_out_file
from polytone.train.tokenization import split
from tests.support.adapters import changed_version
from tests.support.processes import polytone
from tests.support.recipes import conversations, said, silent, train_rows, user, write_rows
from tests.support.tiny_llama import save_tiny_llama, teach

pytestmark = pytest.mark.slow

THINGS = ("parcel", "refund", "invoice", "voucher", "battery", "address")
DEFAULTS = GatesSection()


def rows(word: str, numbers: range) -> list[dict[str, Any]]:
    """Customers with one of six things on their mind, answered with a word of the voice and that thing."""
    return [
        {"messages": [user(f"my {THINGS[number % 6]} {number}"), said(f"{word} {THINGS[number % 6]}")]}
        for number in numbers
    ]


@dataclass(frozen=True)
class Shop:
    """A base that answers "see parcel", a voice that says "ahoy parcel" instead, and customers neither has seen."""

    home: Home
    voice: Manifest
    held_out: Path

    @property
    def file(self) -> RowFile[Conversation]:
        return read_conversations(self.held_out)

    def evaluate(self, manifest: Manifest, gates: GatesSection = DEFAULTS, out: Path | None = None) -> Evaluated:
        return evaluate_version(self.home, manifest, self.file, gates, Extent(512, 64), out, silent())

    def changed(self, name: str, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Manifest:
        return changed_version(self.home, self.voice, name, change)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    from polytone.train.libraries import quiet_libraries

    quiet_libraries()
    root = tmp_path_factory.mktemp("evaluation")
    home = Home(root / "home")
    llama = teach(save_tiny_llama(root / "llama"), [row["messages"] for row in rows("see", range(24))], steps=60)
    prepare_base(home, str(llama), "tiny", "Apache-2.0", silent())
    training = {"max_steps": 30, "learning_rate": 0.01}
    voice = train_rows(root, home, "acme", rows("ahoy", range(36)), training=training).manifest
    return Shop(home, voice, write_rows(root, rows("ahoy", range(36, 60)), "held_out.jsonl"))


@pytest.fixture(scope="module")
def good(shop: Shop) -> Evaluated:
    return shop.evaluate(shop.voice)


def test_a_voice_that_learned_its_rows_is_good(shop: Shop, good: Evaluated) -> None:
    verdict = good.verdict
    assert (verdict.verdict, verdict.passed, verdict.reasons, verdict.not_measured) == ("good", True, [], {})
    voice, base = good.document["models"]["voice"], good.document["models"]["base"]
    assert voice["loss"]["high"] < base["loss"]["low"]
    assert voice["chrf"]["value"] > base["chrf"]["value"]
    assert voice["tone"]["value"] > 0.8
    assert base["tone"]["value"] < 0.2
    assert read_verdict(shop.home, shop.voice.version) == verdict


def test_an_adapter_of_noise_is_damaged(shop: Shop) -> None:
    generator = torch.Generator().manual_seed(1)
    noise = shop.changed("noise", lambda _, tensor: torch.randn(tensor.shape, generator=generator).to(tensor.dtype))
    verdict = shop.evaluate(noise).verdict
    assert (verdict.verdict, verdict.passed) == ("damaged", False)
    assert verdict.reasons[0].gate == "damaged"
    assert "higher than the bare base's" in verdict.reasons[0].message
    assert {"min_improvement", "min_chrf_gain", "max_cut_off"} <= {reason.gate for reason in verdict.reasons}


def test_an_untrained_adapter_has_learned_nothing(shop: Shop) -> None:
    still = shop.changed("still", lambda key, tensor: torch.zeros_like(tensor) if "lora_B" in key else tensor)
    found = shop.evaluate(still)
    assert (found.verdict.verdict, found.verdict.passed) == ("nothing learned", False)
    assert found.verdict.reasons[0].gate == "nothing_learned"
    assert found.document["adapter_loss"] == found.document["base_loss"]
    assert found.document["differences"]["voice_minus_base"]["loss"] == {"value": 0, "low": 0, "high": 0}
    replies = [json.loads(line)["replies"] for line in (found.folder / "replies.jsonl").read_text().splitlines()]
    assert all(one["voice"] == one["base"] for one in replies)


def test_no_gate_lets_damage_or_nothing_through(shop: Shop) -> None:
    off = GatesSection.model_validate(dict.fromkeys(GatesSection.model_fields))
    still = shop.changed("unjudged", lambda key, tensor: torch.zeros_like(tensor) if "lora_B" in key else tensor)
    assert not shop.evaluate(still, off).verdict.passed
    assert shop.evaluate(shop.voice, off).verdict.passed


def test_the_gates_of_the_recipe_decide(shop: Shop) -> None:
    hard = GatesSection(min_improvement=9.0, min_tone=1.0)
    verdict = shop.evaluate(shop.voice, hard).verdict
    assert (verdict.verdict, verdict.passed) == ("not good enough", False)
    assert [(reason.gate, reason.bar) for reason in verdict.reasons] == [("min_improvement", 9.0), ("min_tone", 1.0)]
    trained = shop.voice.model_copy(update={"recipe": {**shop.voice.recipe, "gates": {"min_tone": 0.9}}})
    assert gates_of(trained) == GatesSection(min_tone=0.9)
    before_there_were_gates = shop.voice.model_copy(update={"recipe": {"name": "acme"}})
    assert gates_of(before_there_were_gates) == DEFAULTS
    with pytest.raises(CheckError) as caught:
        gates_of(shop.voice.model_copy(update={"recipe": {"gates": {"min_charm": 1}}}))
    assert caught.value.code == "manifest_invalid"
    assert "min_charm" in caught.value.message


def test_a_folder_holds_report_figures_replies_and_plots(shop: Shop, good: Evaluated) -> None:
    names = {path.name for path in good.folder.iterdir()}
    plots = {"losses.png", "lengths.png", "tone.png"}
    assert names == {"evaluation.json", "report.md", "replies.jsonl"} | plots
    assert all((good.folder / plot).read_bytes().startswith(b"\x89PNG") for plot in plots)
    assert json.loads((good.folder / "evaluation.json").read_text()) == json.loads(json.dumps(good.document))
    report = (good.folder / "report.md").read_text()
    assert report.startswith(f"# {shop.voice.version}: good")
    assert "Quantization to NF4" in report
    assert set(re.findall(r"\]\((\w+\.png)\)", report)) == plots
    gates = [held["gate"] for held in good.document["held"]]
    assert sorted(gates) == sorted(set(DEFAULTS.model_dump()) - {"max_parent_loss_increase"})


def test_every_figure_has_an_interval_around_it(good: Evaluated) -> None:
    groups = [good.document["models"], good.document["differences"], *good.document["bias"].values()]
    found = [
        figure for group in groups for one in group.values() for figure in one.values() if isinstance(figure, dict)
    ]
    assert len(found) > 50
    assert all(one["low"] <= one["value"] <= one["high"] for one in found)


def test_the_losses_are_those_of_training_and_of_a_packed_base(shop: Shop, tmp_path: Path) -> None:
    """Training measures on packed NF4 weights, evaluation on a CPU on their dense values."""
    path = write_rows(tmp_path, rows("ahoy", range(36)))
    file = read_conversations(path)
    held = split(file.rows, 0.2, 0)[1]
    mine = RowFile(str(path), file.sha256, held, list(range(1, len(held) + 1)))
    found = evaluate_version(shop.home, shop.voice, mine, DEFAULTS, Extent(512, 4), tmp_path / "out", silent()).document
    assert found["adapter_loss"] == pytest.approx(shop.voice.evaluation.adapter_loss, abs=1e-4)
    assert found["base_loss"] == pytest.approx(shop.voice.evaluation.base_loss, abs=1e-4)
    assert found["tokens"] == shop.voice.evaluation.tokens


def test_the_same_evaluation_again_finds_the_same(shop: Shop, good: Evaluated) -> None:
    again = shop.evaluate(shop.voice).document
    for key in ("differences", "bias", "held"):
        assert again[key] == good.document[key]
    assert again["verdict"]["folder"] != good.document["verdict"]["folder"]


def test_a_parent_on_disk_is_compared_and_one_elsewhere_is_not_judged_by(shop: Shop, tmp_path: Path) -> None:
    parent = shop.voice
    training = {"max_steps": 2, "learning_rate": 0.001}
    child = train_rows(tmp_path, shop.home, "grown", rows("ahoy", range(36)), parent=parent.version, training=training)
    found = shop.evaluate(child.manifest)
    its = shop.evaluate(parent).document
    assert found.document["parent_loss"] == pytest.approx(its["adapter_loss"], abs=1e-5)
    assert found.document["models"]["parent"]["chrf"] == its["models"]["voice"]["chrf"]
    assert "max_parent_loss_increase" in [held["gate"] for held in found.document["held"]]
    alone = child.manifest.model_copy(update={"parent": "acme@000000000000"})
    lost = shop.evaluate(alone)
    assert lost.document["parent_loss"] is None
    assert "is not on disk" in lost.verdict.not_measured["max_parent_loss_increase"]


def test_a_version_worse_than_its_parent_is_held_back(shop: Shop, tmp_path: Path) -> None:
    parent = shop.voice
    training = {"max_steps": 6, "learning_rate": 0.01}
    odd = train_rows(tmp_path, shop.home, "worse", conversations("moo"), parent=parent.version, training=training)
    gates = GatesSection.model_validate({**dict.fromkeys(GatesSection.model_fields), "max_parent_loss_increase": 0.1})
    verdict = shop.evaluate(odd.manifest, gates).verdict
    assert not verdict.passed
    assert "max_parent_loss_increase" in {reason.gate for reason in verdict.reasons}


def test_too_few_conversations_for_a_tone_are_said_and_one_alone_is_refused(shop: Shop, tmp_path: Path) -> None:
    few = read_conversations(write_rows(tmp_path, rows("ahoy", range(40, 46)), "few.jsonl"))
    found = evaluate_version(shop.home, shop.voice, few, DEFAULTS, Extent(512, 64), tmp_path / "few", silent())
    assert "too few to learn the tone from" in found.verdict.not_measured["min_tone"]
    assert not (found.folder / "tone.png").exists()
    one = read_conversations(write_rows(tmp_path, rows("ahoy", range(1)), "one.jsonl"))
    with pytest.raises(InputError) as caught:
        evaluate_version(shop.home, shop.voice, one, DEFAULTS, Extent(512, 64), tmp_path / "one", silent())
    assert caught.value.code == "too_few_rows"
    assert not (tmp_path / "one").exists()


def test_a_folder_that_is_there_is_never_written_over(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError) as caught:
        shop.evaluate(shop.voice, out=tmp_path / "mine")
    assert caught.value.code == "output_exists"
    assert list((tmp_path / "mine").iterdir()) == []


def test_paired_questions_differ_in_one_thing_only() -> None:
    found = pairs()
    assert len(found) == 24
    assert len({text for pair in found for text in (pair.first, pair.second)}) == 48
    for pair in found:
        first, second = pair.first.split(), pair.second.split()
        while first and second and first[0] == second[0]:
            first, second = first[1:], second[1:]
        while first and second and first[-1] == second[-1]:
            first, second = first[:-1], second[:-1]
        assert 1 <= len(second) <= len(first) <= 2, pair


def test_without_data_the_rows_that_the_run_held_out_are_taken(shop: Shop) -> None:
    """The guide said `--data held.jsonl`, a file that nothing had made."""
    file = held_out_file(shop.home, shop.voice)
    assert file is not None
    assert [row.messages for row in read_conversations(file).rows] == [
        row.messages for row in split(read_conversations(shop.held_out.parent / "acme" / "rows.jsonl").rows, 0.2, 0)[1]
    ]
    done = polytone("evaluate", "acme", "--replies", "2", "--no-paired-questions", home=shop.home.root)
    assert f"Evaluating on 7 conversations: {file}" in done.stderr
    assert "paired questions" not in done.stderr
    assert "max_bias_gap was not applied: the paired questions were left out." in done.stdout
    version = shop.voice.version
    assert f"Next: polytone adapters publish {version} && polytone adapters promote {version}" in done.stdout
    copy = shop.changed("copied", lambda _, tensor: tensor)
    done = polytone("evaluate", copy.version, home=shop.home.root)
    assert done.returncode == 2
    assert f"The rows that the run of {copy.version} held out are not under" in done.stderr


def test_the_command_line_says_why_not_and_ends_with_1(shop: Shop, tmp_path: Path) -> None:
    hard = tmp_path / "recipe.yaml"
    hard.write_text("name: acme\ndata: {train: rows.jsonl}\ngates: {min_improvement: 9}\n")
    wanted = ("evaluate", "acme", "--data", str(shop.held_out), "--replies", "4")
    done = polytone(*wanted, "--gates", str(hard), "--json", "--out", str(tmp_path / "out"), home=shop.home.root)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert {"version", "base_loss", "adapter_loss", "parent_loss", "tokens", "improvement"} <= set(document)
    assert document["verdict"]["reasons"][0]["gate"] == "min_improvement"
    assert document["folder"] == str(tmp_path / "out")
    done = polytone(*wanted, home=shop.home.root)
    assert done.returncode == 0, done.stderr
    assert "Verdict: good. It passed its gates." in done.stdout
    assert "Quantization to NF4" in done.stdout
    hard.write_text("name: acme\ndata: {train: rows.jsonl}\ngates: {min_improvment: 9}\n")
    done = polytone(*wanted, "--gates", str(hard), home=shop.home.root)
    assert done.returncode == 2
    assert "known here: min_improvement" in done.stderr
