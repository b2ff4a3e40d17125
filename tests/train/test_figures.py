"""The statistics of an evaluation: intervals that say how sure they are, and figures that mean what they say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polytone.train.artifact.generation import GeneratedReply, Prompt
from polytone.train.artifact.scoring import Score
from polytone.train.evaluation.bias import certain_gap, gaps, pairs
from polytone.train.evaluation.gates import judge
from polytone.train.evaluation.metrics import FOLDS, NAMES, chrf, learn_tone, on_topic, reply_figures, score_figures
from polytone.train.evaluation.questions import Question
from polytone.train.evaluation.results import Results
from polytone.train.intervals import Interval, Sample, difference, interval, mean_of
from polytone.train.recipe import GatesSection

TRIALS = 300
THINGS = ["parcel", "refund", "invoice", "voucher", "battery", "address", "charger", "ladder", "curtain", "kettle"]
DEFAULTS = GatesSection()


def question(asked: str, reference: str) -> Question:
    return Question(Prompt([{"role": "user", "content": asked}], [1]), asked, reference, (reference,))


def answer(text: str, cut: bool = False) -> GeneratedReply:
    return GeneratedReply(text, len(text.split()), "length" if cut else "stop")


@pytest.mark.parametrize("count", [12, 60])
def test_an_interval_covers_the_mean_about_as_often_as_it_says(count: int) -> None:
    random = np.random.default_rng(0)
    found = [interval(mean_of(random.normal(3.0, 2.0, count)), seed) for seed in range(TRIALS)]
    covered = np.mean([one.low <= 3.0 <= one.high for one in found])
    # Three standard errors of a share of 0.95 in 300 trials are 0.038.
    assert 0.912 <= covered <= 0.988


def test_a_skewed_figure_is_covered_nearly_as_often() -> None:
    random = np.random.default_rng(1)
    found = [interval(mean_of(random.exponential(1.0, 60)), seed) for seed in range(TRIALS)]
    assert np.mean([one.low <= 1.0 <= one.high for one in found]) >= 0.9


def test_equal_models_differ_by_nothing_and_models_alike_by_an_interval_around_it() -> None:
    random = np.random.default_rng(2)
    mine = Sample(random.exponential(50.0, 40), random.integers(10, 60, 40).astype(float))
    assert difference(mine, mine) == Interval(0.0, 0.0, 0.0)
    covered = 0
    for seed in range(TRIALS):
        rows = random.normal(3.0, 1.0, 40)
        one, other = (mean_of(rows + random.normal(0.0, 0.1, 40)) for _ in range(2))
        found = difference(one, other, seed)
        covered += found.low <= 0 <= found.high
        assert found.high - found.low < 0.3  # rows are hard for both: that is no difference between them
    assert 0.912 <= covered / TRIALS <= 0.988


def test_a_loss_is_per_token_and_not_a_mean_of_conversations() -> None:
    samples = score_figures([Score(nats=10.0, correct=1, tokens=10), Score(nats=270.0, correct=80, tokens=90)])
    assert samples["loss"].value == pytest.approx(2.8)
    assert samples["accuracy"].value == pytest.approx(0.81)


def test_conversations_are_resampled_not_tokens() -> None:
    """A thousand tokens of two conversations say no more than two conversations can."""
    sample = Sample(np.array([1000.0, 3000.0]), np.array([1000.0, 1000.0]))
    found = interval(sample)
    assert (found.low, found.value, found.high) == (1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="at least 2 conversations"):
        interval(Sample(np.array([1.0]), np.array([1000.0])))
    with pytest.raises(ValueError, match="cannot be paired"):
        difference(sample, mean_of([1.0, 2.0, 3.0]))


def test_a_reply_fits_its_own_question_and_by_chance_a_half() -> None:
    questions = [question(f"my {thing}", f"the {thing} is on its way") for thing in THINGS]
    assert on_topic(questions, [f"about that {thing}" for thing in THINGS]) == pytest.approx(np.ones(10))
    assert on_topic(questions, [""] * 10) == pytest.approx(np.full(10, 0.5))
    wrong = on_topic(questions, [f"about that {thing}" for thing in THINGS[1:] + THINGS[:1]])
    assert wrong.max() < 0.5


def test_chrf_knows_a_copy_from_something_else() -> None:
    assert chrf(["ahoy there"], ["ahoy there"]) == pytest.approx([100.0])
    assert chrf(["zzz"], ["ahoy there"]) == pytest.approx([0.0])


def test_tone_is_judged_by_a_classifier_that_has_not_seen_the_conversation() -> None:
    """Voice and base that speak alike cannot be told apart; a classifier that had seen them would say it can."""
    random = np.random.default_rng(3)

    def babble() -> str:
        return " ".join("".join(random.choice(list("abcdefghij"), 5)) for _ in range(8))

    questions = [question("x", babble()) for _ in range(60)]
    base = [babble() for _ in range(60)]
    classifiers = learn_tone(questions, base)
    assert len(classifiers.of_fold) == FOLDS
    assert classifiers.of_all is not None
    seen = 1 - np.mean(classifiers.of_all.off([one.reference for one in questions]))
    unseen = np.mean(classifiers.tone([one.reference for one in questions]))
    assert seen > 0.8
    assert 0.35 < unseen < 0.65


def test_tone_tells_a_voice_from_its_base_and_an_empty_reply_has_none() -> None:
    questions = [question(f"my {thing} {i}", f"Ahoy mate, your {thing} sails!") for i in range(3) for thing in THINGS]
    classifiers = learn_tone(questions, [f"I am sorry about the {thing}." for _ in range(3) for thing in THINGS])
    found = classifiers.tone([*["Ahoy mate, it sails!"] * 10, *["I am sorry."] * 10, *[""] * 10])
    assert found[:10].min() > 0.8
    assert found[10:20].max() < 0.2
    assert found[20:].max() == 0.0
    assert learn_tone(questions[:10], ["I am sorry."] * 10).of_fold == ()


def test_figures_of_replies_count_what_they_name() -> None:
    questions = [question("my parcel", "it is here"), question("my refund", "it is paid")]
    found = reply_figures(
        questions, [answer("a b c d a b c d a b c d", cut=True), answer("")], learn_tone(questions, ["", ""])
    )
    assert found["cut_off"].value == 0.5
    assert found["empty"].value == 0.5
    assert found["repetition"].value == pytest.approx(5 / 9 / 2)
    assert found["reply_words"].value == 6.0
    assert "tone" not in found


def test_a_gap_is_what_the_second_of_a_pair_gets_more() -> None:
    answers = []
    for pair in pairs():
        more = 6 if pair.kind == "gender" else 3
        answers += [answer("word " * 3), answer("word " * more)]
    found = gaps(answers, None)
    assert certain_gap(found["name"]["length"]) == 0.0
    assert certain_gap(found["gender"]["length"]) == pytest.approx(np.log(7 / 4))
    refusing = [answer(text) for _ in pairs() for text in ("I can't help with that.", "Gladly.")]
    assert gaps(refusing, None)["nationality"]["refusal"].value == -1.0
    assert certain_gap(Interval(0.1, -0.1, 0.3)) == 0.0
    assert certain_gap(Interval(-0.3, -0.4, -0.2)) == 0.2


def good_results(**changes: Any) -> Results:
    """A good voice of thirty conversations; `changes` replace its mean figures."""
    spread = np.linspace(-0.01, 0.01, 30)
    good = {
        "loss": 2.0,
        "chrf": 30.0,
        "tone": 0.9,
        "on_topic": 0.9,
        "repetition": 0.02,
        "cut_off": 0.1,
        "empty": 0.0,
        "bias": 0.0,
    }
    voice = {**good, **changes}
    base = {**good, "loss": 3.0, "chrf": 20.0, "tone": 0.1}
    gap = {"length": Interval(voice["bias"], voice["bias"] - 0.05, voice["bias"] + 0.05)}
    return Results(
        samples={
            "base": {name: mean_of(value + spread) for name, value in base.items()},
            "parent": {name: mean_of(value + spread) for name, value in good.items()},
            "voice": {name: mean_of(value - spread) for name, value in voice.items()},
        },
        bias={"voice": {"name": gap}},
        seconds_per_token={},
        tokens=900,
        replies=30,
        new_tokens=80,
        parent="acme@000000000000",
    )


def test_a_figure_that_is_good_enough_passes_every_gate() -> None:
    judgement = judge(good_results(), DEFAULTS)
    assert (judgement.word, judgement.passed, judgement.reasons) == ("good", True, [])
    assert {result.gate for result in judgement.results} == set(GatesSection.model_fields)


@pytest.mark.parametrize(
    ("gate", "changes"),
    [
        ("min_improvement", {"loss": 2.98}),
        ("max_parent_loss_increase", {"loss": 2.2}),
        ("min_chrf_gain", {"chrf": 19.0}),
        ("min_tone", {"tone": 0.4}),
        ("min_on_topic", {"on_topic": 0.5}),
        ("max_repetition", {"repetition": 0.4}),
        ("max_cut_off", {"cut_off": 0.6}),
        ("max_empty", {"empty": 0.2}),
        ("max_bias_gap", {"bias": 0.5}),
        ("max_bias_gap", {"bias": -0.5}),
    ],
)
def test_each_gate_fails_on_its_own_figure_and_not_when_it_is_off(gate: str, changes: dict[str, float]) -> None:
    only = GatesSection.model_validate(
        {name: getattr(DEFAULTS, name) if name == gate else None for name in GatesSection.model_fields}
    )
    judgement = judge(good_results(**changes), only)
    assert judgement.word == "not good enough"
    assert [reason.gate for reason in judgement.reasons] == [gate]
    assert judgement.reasons[0].message.startswith(f"{gate}: ")
    off = GatesSection.model_validate(dict.fromkeys(GatesSection.model_fields))
    assert judge(good_results(**changes), off).passed


def test_a_failed_gate_says_in_a_sentence_what_was_measured_and_what_is_allowed() -> None:
    """It read `of the sequences of four words in a reply, repeated is a share of 0.085; at most 0.01 is allowed`."""
    gates = GatesSection(max_repetition=0.01, max_cut_off=0.05, min_tone=0.95)
    messages = {reason.gate: reason.message for reason in judge(good_results(repetition=0.085), gates).reasons}
    assert messages == {
        "max_repetition": "max_repetition: 8.5 % of four-word sequences are repeats; at most 1 % allowed.",
        "max_cut_off": "max_cut_off: 10 % of replies were not finished after 80 tokens; at most 5 % allowed.",
        "min_tone": "min_tone: replies sound like the voice with a probability of 90 %; at least 95 % required.",
    }


def test_without_the_paired_questions_the_bias_gate_is_not_applied_and_says_so() -> None:
    results = replace(good_results(bias=0.9), bias={"voice": {}})
    judgement = judge(results, DEFAULTS)
    assert judgement.passed
    assert judgement.not_measured == {"max_bias_gap": "the paired questions were left out"}
    assert gaps([], None) == {}


def test_every_figure_has_one_name_in_report_and_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    rows = {
        name.strip() for line in text.splitlines() if line.startswith("| ") for name in line.split("|")[1].split(",")
    }
    assert set(NAMES.values()) | {"seconds per token"} <= rows


def test_a_gap_that_may_be_chance_is_no_bias() -> None:
    found = good_results(bias=0.27)  # its interval reaches down to 0.22
    assert judge(found, DEFAULTS).passed


def test_worse_than_the_base_by_chance_is_not_damage() -> None:
    assert judge(good_results(loss=3.5), DEFAULTS).word == "damaged"
    assert judge(good_results(loss=3.001), DEFAULTS).word == "not good enough"
