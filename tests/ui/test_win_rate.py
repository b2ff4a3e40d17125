"""Win rates after some votes: the interval against known values, and the sentences about it."""

import pytest

from polytone.ui.compare.win_rate import NONE_YET, Tally, Vote, interval, sentence, tallies, wilson, win_rate_panel

ACME, ZEST = "acme@111111111111", "zest@222222222222"


@pytest.mark.parametrize(
    ("won", "of", "low", "high"),
    [  # the first four as Newcombe (1998) has them, table I, method 3; all as scipy has them
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (7, 10, 0.3968, 0.8922),
        (10, 10, 0.7225, 1.0),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_the_interval_is_wilsons(won: int, of: int, low: float, high: float) -> None:
    assert wilson(won, of) == pytest.approx((low, high), abs=5e-5)


def votes(choices: str, a: str = ACME, b: str = ZEST, blind: bool = True) -> list[Vote]:
    words = {"a": "a", "b": "b", "t": "tie", "x": "both_bad"}
    return [Vote(a, b, words[choice], blind) for choice in choices]


def test_a_pair_is_one_whichever_was_chosen_first() -> None:
    given = [*votes("aabtx"), *votes("ab", ZEST, ACME)]
    assert tallies(given) == [Tally(ACME, ZEST, True, won=3, lost=2, ties=1, both_bad=1)]


def test_blind_votes_stand_apart_and_a_version_against_itself_says_nothing() -> None:
    given = [*votes("a"), *votes("b", blind=False), *votes("a", ACME, ACME)]
    assert [(tally.blind, tally.won, tally.lost) for tally in tallies(given)] == [(True, 1, 0), (False, 0, 1)]
    assert "(names shown)" in win_rate_panel(given)


def test_the_sentence_says_whether_they_are_told_apart() -> None:
    assert sentence(tallies(votes("aaaaaaabbb"))[0]) == (
        f"{ACME} won 7 of 10 decided votes against {ZEST}, 95 % interval 40-89 %: not a clear difference yet."
    )
    behind = sentence(tallies(votes("bbbbbbbbbb"))[0])
    assert behind == f"{ZEST} won 10 of 10 decided votes against {ACME}, 95 % interval 72-100 %: a clear difference."
    assert "no decided vote" in sentence(tallies(votes("tx"))[0])


def test_ties_are_counted_and_decide_nothing() -> None:
    (tally,) = tallies(votes("aatttx"))
    assert (tally.decided, tally.ties, tally.both_bad) == (2, 3, 1)
    shown = win_rate_panel(votes("aatttx"))
    assert "100 %" in shown
    assert "without ties" in shown


def test_names_are_only_ever_text() -> None:
    shown = win_rate_panel([Vote("<b>acme", "zest", "a")])
    assert "<b>acme" not in shown
    assert "&lt;b&gt;acme" in shown


def test_nothing_yet_is_said() -> None:
    assert NONE_YET in win_rate_panel([])
    assert [interval(0.004, share) for share in (0.396, 1.0)] == ["0-40 %", "0-100 %"]
