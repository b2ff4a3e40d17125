"""The adapter version on disk: exact files, a digest that is its name, and everything a damaged one is told."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from polytone.contract.adapter import (
    CONFIG,
    EVALUATION,
    FILES,
    WEIGHTS,
    check_servable,
    digest_adapter,
    list_versions,
    read_config,
    read_folder,
    read_version,
)
from polytone.contract.base import Base
from polytone.contract.errors import CheckError, NotFoundError, StorageError
from polytone.contract.files import folder_written_whole, remove_leftovers
from polytone.contract.home import Home
from polytone.contract.manifest import MANIFEST, Peft
from tests.support.adapters import change_manifest, make_base, make_version


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def base(home: Home) -> Base:
    return make_base(home)


def refusal(home: Home, version: str) -> str:
    with pytest.raises(CheckError) as caught:
        read_version(home, version)
    return caught.value.code


def test_a_version_has_exactly_its_files_and_its_name_is_its_content(home: Home, base: Base) -> None:
    manifest = make_version(home, base, "acme")
    folder = home.adapter_folder(manifest.version)
    assert {path.name for path in folder.iterdir()} == FILES
    assert read_version(home, manifest.version) == manifest
    shutil.copytree(folder, home.adapters / ".upload.x" / "upload")  # one that is being written is none yet
    assert list_versions(home) == [manifest.version]


def test_a_version_of_before_still_has_the_evaluation_that_its_manifest_repeats(home: Home, base: Base) -> None:
    manifest = make_version(home, base, "acme")
    (home.adapter_folder(manifest.version) / EVALUATION).write_text("{}\n")
    assert read_version(home, manifest.version) == manifest


def test_other_bytes_are_another_version(home: Home, base: Base) -> None:
    assert make_version(home, base, "acme", seed=1).digest != make_version(home, base, "acme", seed=2).digest


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])


def cut_to_five_bytes(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"12345")


def write_pickle(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps({"a": 1}))


def add_pickle(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"x")


def change_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**content, **changes}))

    return change


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (flip_a_bit, "wrong_digest"),
        (truncate, "file_truncated"),
        (cut_to_five_bytes, "not_safetensors"),
        (write_pickle, "not_safetensors"),
        (add_pickle, "not_safetensors"),
        (lambda folder: (folder / WEIGHTS).unlink(), "files_missing"),
        (lambda folder: (folder / "notes.txt").write_text("x"), "files_unexpected"),
        (lambda folder: change_manifest(folder, surprise=1), "manifest_invalid"),
        (lambda folder: change_manifest(folder, digest="0" * 64), "wrong_digest"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "manifest_invalid"),
        (lambda folder: (folder / CONFIG).write_text("{}"), "config_invalid"),
        (change_config(use_dora=True), "peft_unsupported"),
        (change_config(bias="all"), "peft_unsupported"),
        (change_config(r=2), "tensors_mismatch"),
        (change_config(r=0), "config_invalid"),
        (change_config(lora_alpha=float("inf")), "config_invalid"),
        (change_config(rank_pattern={"q_proj": 513}), "config_invalid"),
    ],
)
def test_a_damaged_version_is_refused_with_its_reason(
    home: Home, base: Base, damage: Callable[[Path], None], code: str
) -> None:
    manifest = make_version(home, base, "acme")
    damage(home.adapter_folder(manifest.version))
    assert refusal(home, manifest.version) == code


def test_a_bad_configuration_is_told_which_fields(home: Home, base: Base) -> None:
    version = make_version(home, base, "acme").version
    change_config(r="many", target_modules=None)(home.adapter_folder(version))
    with pytest.raises(CheckError, match=r"r: .*integer") as caught:
        read_version(home, version)
    assert "target_modules" in caught.value.message


def test_what_peft_leaves_empty_is_no_feature(home: Home, base: Base) -> None:
    version = make_version(home, base, "acme").version
    folder = home.adapter_folder(version)
    change_config(use_dora=False, modules_to_save=None, rank_pattern={}, alpha_pattern=None, task_type="X")(folder)
    change_manifest(folder, digest=digest_adapter(folder))
    assert read_folder(folder).peft.rank == max(read_config(folder).ranks) == 4


def test_a_version_of_another_base_template_or_rank_is_not_servable(home: Home, base: Base) -> None:
    cases = {
        "wrong_base": make_version(home, make_base(home, "tiny", "c" * 64), "acme", seed=1),
        "wrong_chat_template": make_version(home, base, "acme", seed=2, chat_template_sha256="x" * 64),
        "rank_too_high": make_version(home, base, "acme", seed=3, peft=Peft(rank=64, alpha=8, targets=["q_proj"])),
    }
    for code, manifest in cases.items():
        with pytest.raises(CheckError) as caught:
            check_servable(manifest, base, max_rank=16)
        assert caught.value.code == code
    check_servable(make_version(home, base, "acme", seed=4), base, max_rank=16)


def test_a_version_that_is_not_there(home: Home) -> None:
    with pytest.raises(NotFoundError, match="There is no version"):
        read_version(home, "acme@0123456789ab")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), folder_written_whole(tmp_path / "version") as folder:
        (folder / "half").write_text("x")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught, folder_written_whole(tmp_path / "version") as folder:
        (folder / "half").write_text("x")
        with Path("/dev/full").open("w") as full:  # the kernel's own disk that is always full
            full.write("x")
    assert caught.value.code == "disk_full"
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_removed_a_day_later(tmp_path: Path) -> None:
    fresh, old, kept = tmp_path / "acme" / ".new", tmp_path / ".upload.old", tmp_path / "acme" / "version"
    for folder in (fresh, old, kept):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    os.utime(kept, (0, 0))
    remove_leftovers(tmp_path)
    assert fresh.exists()
    assert kept.exists()
    assert not old.exists()


def test_a_second_writer_of_the_same_version_changes_nothing(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with folder_written_whole(tmp_path / "version") as folder:
            (folder / "file").write_text(text)
    assert (tmp_path / "version" / "file").read_text() == "first"
    assert os.listdir(tmp_path) == ["version"]  # noqa: PTH208
