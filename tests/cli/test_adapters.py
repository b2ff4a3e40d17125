"""The commands of `adapters` and `keys`, as somebody reads them in a terminal or a pipe."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from polytone.cli.main import app
from polytone.contract.errors import PolytoneError
from polytone.contract.home import Home
from tests.support.adapters import make_base, make_version


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("POLYTONE_HOME", str(tmp_path))
    monkeypatch.setenv("POLYTONE_BASE", make_base(Home(tmp_path)).id)
    monkeypatch.setenv("COLUMNS", "80")
    return Home(tmp_path)


def run(*words: str) -> Result:
    done = CliRunner().invoke(app, words)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 0, done.output
    return done


def refusal(*words: str) -> PolytoneError:
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, PolytoneError), (done.exception, done.output)
    return done.exception


def published(home: Home, voice: str, *seeds: int) -> list[str]:
    base = make_base(home)
    versions = [make_version(home, base, voice, seed).version for seed in seeds]
    for version in versions:
        run("adapters", "publish", version)
    return versions


def test_a_first_version_is_promoted_and_the_second_is_a_canary(home: Home) -> None:
    """The guides said publish, canary, promote for a new voice; its first version has nobody to share with."""
    old, new = published(home, "acme", 1, 2)
    first = refusal("adapters", "canary", old, "10")
    assert first.code == "rollout_invalid"
    assert first.message == (
        "acme has no other version to share its conversations with: a canary is for a voice's second version on. "
        f"Promote this one: polytone adapters promote {old}"
    )
    assert f"acme is answered by {old}.\n" in run("adapters", "promote", old).stdout
    done = run("adapters", "canary", new, "10").stdout
    assert f"acme is answered by {old} (90 %), {new} (10 %) (was {old})." in done
    assert "x-conversation-id" in done
    assert f"acme is answered by {new} (was {old} (90 %), {new} (10 %))." in run("adapters", "promote", new).stdout


def test_a_rollback_says_who_answers_again_and_who_did(home: Home) -> None:
    old, new = published(home, "acme", 1, 2)
    run("adapters", "promote", old)
    run("adapters", "promote", new)
    assert f"acme is answered by {old} again (was {new})." in run("adapters", "rollback", "acme").stdout


def test_a_rollback_inside_a_canary_says_what_remains(home: Home) -> None:
    old, new = published(home, "acme", 1, 2)
    run("adapters", "promote", old)
    run("adapters", "canary", new, "10")
    run("adapters", "canary", new, "50")
    done = run("adapters", "rollback", "acme").stdout
    assert f"acme is answered by {old} (90 %), {new} (10 %) again (was {old} (50 %), {new} (50 %))." in done
    assert "To go back further: polytone adapters rollback acme" in done


def test_without_a_server_a_change_says_when_it_takes_effect(home: Home) -> None:
    version = published(home, "acme", 1)[0]
    assert "No server is running" in run("adapters", "promote", version).stdout


@pytest.mark.parametrize("words", [("adapters", "list"), ("adapters", "audit")], ids=" ".join)
def test_ids_are_whole_in_a_narrow_terminal_and_in_a_pipe(home: Home, words: tuple[str, ...]) -> None:
    name = "a-voice-with-a-rather-long-name-of-fifty-characters"
    old, new = published(home, name, 1, 2)
    run("adapters", "promote", old)
    run("adapters", "canary", new, "25")
    lines = run(*words).stdout.splitlines()
    for version in (old, new):
        assert any(version in line for line in lines), lines
    assert not [line for line in lines if "…" in line or line != line.rstrip()]


def test_keys_are_listed_whole(home: Home) -> None:
    voices = [f"voice-with-a-long-name-{number}" for number in range(5)]
    run("keys", "create", "--name", "k" * 60, "--adapters", ",".join(voices))
    listed = run("keys", "list").stdout
    assert "k" * 60 in listed
    assert ", ".join(voices) in listed


def test_a_key_for_a_voice_that_does_not_exist_is_made_with_a_warning(home: Home) -> None:
    """A typo made a key that opens nothing, and its name was used up."""
    published(home, "fernwick", 1)
    done = run("keys", "create", "--name", "bot", "--adapters", "fernwik, fernwick")
    assert "Warning: there is no voice 'fernwik' here yet. Did you mean fernwick?" in done.stderr
    assert done.stderr.count("Warning") == 1
    document = json.loads(run("keys", "create", "--name", "bot-2", "--adapters", "fernwik", "--json").stdout)
    assert document["unknown_adapters"] == ["fernwik"]
    assert not run("keys", "create", "--name", "bot-3").stderr.count("Warning")


@pytest.mark.parametrize(
    "words",
    [
        ("adapters", "list"),
        ("adapters", "audit"),
        ("keys", "list"),
        ("base", "list"),
    ],
    ids=" ".join,
)
def test_reading_makes_no_home_and_names_the_one_it_read(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Any command in another folder made an empty home there, and did not say which home it had looked at."""
    home = tmp_path / "elsewhere"
    assert str(home) in run(*words, "--home", str(home)).stdout
    json.loads(run(*words, "--home", str(home), "--json").stdout)
    assert not home.exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("adapters", "promote", "acme@0123456789ab"), "version_not_published"),
        (("adapters", "rollback", "acme"), "voice_not_found"),
        (("adapters", "retire", "acme@0123456789ab"), "version_not_published"),
        (("adapters", "show", "acme"), "version_not_found"),
        (("keys", "revoke", "bot"), "key_not_found"),
    ],
    ids=lambda words: " ".join(words[:2]) if isinstance(words, tuple) else "",
)
def test_a_change_of_what_does_not_exist_makes_no_home(tmp_path: Path, words: Any, code: str) -> None:
    home = tmp_path / "elsewhere"
    assert refusal(*words, "--home", str(home)).code == code
    assert not home.exists()


def test_a_voice_that_does_not_exist_comes_with_similar_ones(home: Home) -> None:
    version = published(home, "fernwick", 1)[0]
    run("adapters", "promote", version)
    assert "Did you mean fernwick?" in refusal("adapters", "show", "fernwik").message


def test_a_server_of_another_machine_needs_no_settings_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`push` took its key from POLYTONE_KEY, and was then refused for that variable."""
    home = Home(tmp_path)
    version = make_version(home, make_base(home), "acme", 1).version
    monkeypatch.setenv("POLYTONE_KEY", "pt-admin-1")
    error = refusal("adapters", "push", version, "--home", str(tmp_path), "--url", "http://127.0.0.1:9")
    assert error.code == "server_unreachable"
