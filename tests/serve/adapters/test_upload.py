"""Uploads: a good one is published whole; hundreds of bad ones are refused with their reason and leave nothing."""

import asyncio
import gzip
import io
import json
import pickle
import random
import tarfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from polytone.contract.adapter import CARD, CONFIG, FILES, WEIGHTS, digest_adapter
from polytone.contract.base import Base
from polytone.contract.home import Home
from polytone.contract.manifest import MANIFEST
from polytone.serve.adapters.archive import pack_version
from tests.support.adapters import MODULE, change_manifest, make_base, make_version
from tests.support.serving import Server, eventually, serving

Case = tuple[str, bytes, set[str]]  # a name, an archive, and the codes of which at least one must be given
TENSOR = f"base_model.model.{MODULE}.lora_"
FLIPS = 90
CUTS = 60


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path / "server", upload_bytes=200_000) as running:
        yield running


def packed(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, arcname=path.name)
    return buffer.getvalue()


def archive_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


class Workshop:
    """Makes variants of one good version."""

    def __init__(self, root: Path) -> None:
        self._home = Home(root)
        self._base = make_base(self._home)
        self._made = 0

    def folder(self, base: Base | None = None, **changes: Any) -> Path:
        self._made += 1
        manifest = make_version(self._home, base or self._base, "acme", self._made, **changes)
        return self._home.adapter_folder(manifest.version)

    def other_base(self) -> Base:
        return make_base(self._home, "tiny", "c" * 64)

    def archive(self, change: Callable[[Path], None], resign: bool = True) -> bytes:
        """A version after `change`; with `resign` its manifest tells the new digest, as a skilled liar's would."""
        folder = self.folder()
        change(folder)
        if resign and all((folder / name).is_file() for name in (CONFIG, WEIGHTS, MANIFEST)):
            change_manifest(folder, digest=digest_adapter(folder))
        return packed(folder)


def tensors(**values: torch.Tensor) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = {**load_file(folder / WEIGHTS), **{f"{TENSOR}{key}.weight": value for key, value in values.items()}}
        save_file(content, folder / WEIGHTS)

    return change


def config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**content, **values}))

    return change


def removing(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def rewriting(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def manifest_saying(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change_manifest(folder, **values)


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def bad_uploads(root: Path) -> Iterator[Case]:
    chance = random.Random(11)
    shop = Workshop(root)
    yield from damaged(shop, chance)
    yield from wrong_adapters(shop)
    yield from hostile_archives(shop)


def damaged(shop: Workshop, chance: random.Random) -> Iterator[Case]:
    for file in (CONFIG, WEIGHTS):
        for number in range(FLIPS):

            def one_bit(folder: Path, file: str = file) -> None:
                content = (folder / file).read_bytes()
                (folder / file).write_bytes(flip(content, chance.randrange(8 * len(content))))

            codes = {"wrong_digest", "not_safetensors", "tensors_mismatch", "config_invalid", "file_truncated"}
            yield f"bit of {file} {number}", shop.archive(one_bit, resign=False), codes | {"peft_unsupported"}
    good = packed(shop.folder())
    for number in range(CUTS):
        yield f"cut {number}", good[: chance.randrange(1, len(good) - 1)], {"archive_invalid", "files_missing"}
    for number in range(CUTS):
        changed = flip(good, chance.randrange(8 * 12, 8 * len(good)))
        while says_the_same(changed, good):
            changed = flip(good, chance.randrange(8 * 12, 8 * len(good)))
        codes = {"archive_invalid", "files_unexpected", "wrong_digest", "archive_too_large", "manifest_invalid"}
        yield f"bit of the archive {number}", changed, codes
    for number in range(20):

        def shorter(folder: Path) -> None:
            content = (folder / WEIGHTS).read_bytes()
            (folder / WEIGHTS).write_bytes(content[: chance.randrange(len(content))])

        yield f"weights cut {number}", shop.archive(shorter), {"file_truncated", "not_safetensors"}
    for file in sorted(FILES):
        yield f"without {file}", shop.archive(removing(file)), {"files_missing"}
    for name, content in (
        ("empty", b""),
        ("text", b"hello"),
        ("zip", b"PK\x03\x04" + b"x" * 50),
        ("gzip", gzip.compress(b"x")),
    ):
        yield name, content, {"archive_invalid", "files_missing"}


def says_the_same(changed: bytes, good: bytes) -> bool:
    """A bit of the file name in gzip's header, or behind the last code, is no one's: nothing was damaged."""
    try:
        return gzip.decompress(changed) == gzip.decompress(good)
    except (OSError, EOFError, zlib.error):
        return False


def wrong_adapters(shop: Workshop) -> Iterator[Case]:
    for value in (float("nan"), float("inf"), float("-inf")):
        for part, shape in (("A", (4, 8)), ("B", (8, 4))):
            broken = torch.ones(shape)
            broken[-1, -1] = value
            yield f"{value} in {part}", shop.archive(tensors(**{part: broken})), {"weights_not_finite"}
    yield "zero weights", shop.archive(tensors(B=torch.zeros(8, 4))), {"weights_zero"}
    for name, values in {
        "rank of A": {"A": torch.ones(3, 8)},
        "rank of both": {"A": torch.ones(5, 8), "B": torch.ones(8, 5)},
        "input width": {"A": torch.ones(4, 9)},
        "output width": {"B": torch.ones(9, 4)},
        "three sides": {"A": torch.ones(4, 8, 1)},
        "no rows": {"A": torch.ones(0, 8), "B": torch.ones(8, 0)},
        "integers": {"A": torch.ones(4, 8, dtype=torch.int64)},
    }.items():
        yield f"wrong shape: {name}", shop.archive(tensors(**values)), {"tensors_mismatch", "not_safetensors"}

    def other_module(folder: Path) -> None:
        save_file(
            {key.replace("q_proj", "ghost"): t for key, t in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS
        )

    yield "a module the base has not", shop.archive(other_module), {"tensors_mismatch"}

    def foreign(folder: Path) -> None:
        save_file({**load_file(folder / WEIGHTS), "lm_head.weight": torch.ones(2, 2)}, folder / WEIGHTS)

    yield "a tensor that is no LoRA", shop.archive(foreign), {"tensors_mismatch"}
    unsupported: list[dict[str, Any]] = [
        {"peft_type": "IA3"},
        {"peft_type": "PROMPT_TUNING"},
        {"use_dora": True},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"modules_to_save": ["lm_head"]},
        {"alora_invocation_tokens": [1]},
        {"layer_replication": [[0, 1]]},
        {"trainable_token_indices": [3]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "loftq"},
    ]
    for change in unsupported:
        yield f"unsupported {change}", shop.archive(config(**change)), {"peft_unsupported"}
    senseless: list[dict[str, Any]] = [
        {"r": 0},
        {"r": -4},
        {"r": "four"},
        {"r": 10**9},
        {"lora_alpha": "x"},
        {"lora_alpha": -1},
        {"lora_alpha": float("inf")},
        {"target_modules": 5},
        {"rank_pattern": [1]},
        {"rank_pattern": {"q_proj": "x"}},
    ]
    for change in senseless:
        yield f"config {change}", shop.archive(config(**change)), {"config_invalid", "tensors_mismatch"}
    for text in ("", "[]", "{", "null", "[" * 5000, '"x"'):
        yield f"config {text[:9]!r}", shop.archive(rewriting(CONFIG, text.encode())), {"config_invalid"}
        yield (
            f"manifest {text[:9]!r}",
            shop.archive(rewriting(MANIFEST, text.encode()), False),
            {"manifest_invalid"},
        )

    def high_rank(folder: Path) -> None:
        config(r=64)(folder)
        tensors(A=torch.ones(64, 8), B=torch.ones(8, 64))(folder)
        change_manifest(folder, peft={"rank": 64, "alpha": 8, "targets": ["q_proj"]})

    yield "rank too high", shop.archive(high_rank), {"rank_too_high"}
    lies: list[dict[str, Any]] = [
        {"name": "zest"},
        {"digest": "0" * 64},
        {"digest": "x"},
        {"peft": {"rank": 8, "alpha": 8, "targets": []}},
        {"schema": "polytone.adapter/9"},
        {"surprise": True},
        {"fingerprint": {"dtype": "float32", "probes": []}},
        {"name": "../../etc"},
    ]
    for change in lies:
        yield (
            f"manifest {change}",
            shop.archive(manifest_saying(**change), False),
            {
                "manifest_invalid",
                "wrong_digest",
            },
        )
    yield "wrong template", packed(shop.folder(chat_template_sha256="x" * 64)), {"wrong_chat_template"}
    yield "wrong base", packed(shop.folder(shop.other_base())), {"wrong_base"}


def hostile_archives(shop: Workshop) -> Iterator[Case]:
    good = {path.name: path.read_bytes() for path in shop.folder().iterdir()}
    rest = [(member(name), content) for name, content in good.items() if name != CARD]
    for name in ("../README.md", "/README.md", "a/../../README.md", "x/y/README.md", "..", "/etc/cron.d/README.md"):
        yield f"path {name}", archive_of(*rest, (member(name), b"x")), {"archive_invalid"}
    for kind, label in (
        (tarfile.SYMTYPE, "symlink"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "block device"),
        (tarfile.FIFOTYPE, "fifo"),
    ):
        for name in (CARD, WEIGHTS):
            yield f"{label} {name}", archive_of((member(name, kind, "/etc/passwd"), b"")), {"archive_invalid"}
    yield (
        "a link as a folder",
        archive_of((member("a", tarfile.SYMTYPE, "/etc"), b""), (member("a/x"), b"x")),
        {"archive_invalid"},
    )
    for name in ("adapter_model.bin", "run.py", ".hidden", "notes.txt", "optimizer.pt"):
        yield f"unexpected {name}", archive_of(*rest, (member(name), b"x")), {"files_unexpected"}
    yield "twice", archive_of(*rest, (member(CARD), b"x"), (member(CARD), b"y")), {"files_unexpected"}
    for protocol in range(2, 6):
        content = pickle.dumps({"a": 1}, protocol=protocol)
        yield f"pickle {protocol}", shop.archive(rewriting(WEIGHTS, content)), {"not_safetensors"}
    zeros = bytes(3_000_000)
    yield "a bomb in a file", archive_of(*rest, (member(CARD), zeros)), {"archive_too_large"}
    yield (
        "a bomb of many",
        archive_of(*((member(f"{CARD}/{n}"), b"x") for n in range(100))),
        {
            "archive_invalid",
            "files_unexpected",
        },
    )
    folders = [(member(f"d{number}", tarfile.DIRTYPE), b"") for number in range(200)]
    yield "a bomb of folders", archive_of(*folders), {"archive_invalid", "files_missing"}
    yield (
        "a bomb after the end",
        gzip.compress(gzip.decompress(archive_of(*rest, (member(CARD), b"x"))) + zeros),
        {"archive_invalid"},
    )
    long = tarfile.TarInfo(CARD)
    long.pax_headers = {"comment": "x" * 500_000}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(long, io.BytesIO(b""))
    yield "a bomb in a header", buffer.getvalue(), {"archive_invalid"}
    for name, blocks in sparse_members().items():
        yield name, gzip.compress(blocks + bytes(1024)), {"archive_invalid"}
    folders = [(member(f"d{number}", tarfile.DIRTYPE), b"") for number in range(5_000)]
    yield "a bomb of many folders", archive_of(*folders), {"archive_invalid"}
    chain = b"".join(extended_header(b"x" * 500) for _ in range(20_000))
    yield "a chain of long names", gzip.compress(chain + bytes(1024)), {"archive_invalid"}
    nested = b"[" * 100_000
    for file, codes in ((CONFIG, {"config_invalid"}), (MANIFEST, {"manifest_invalid"}), (WEIGHTS, {"not_safetensors"})):
        content = len(nested).to_bytes(8, "little") + nested if file == WEIGHTS else nested
        yield f"deeply nested {file}", shop.archive(rewriting(file, content), resign=False), codes


def sparse_members() -> dict[str, bytes]:
    """Members of a few hundred bytes that unpack to 150 kB of zeros each, in the two forms that GNU tar writes."""
    old = member(CARD, tarfile.GNUTYPE_SPARSE)
    block = bytearray(old.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"00000000000\0" + b"00000000000\0"  # one piece: at 0, of no bytes
    block[483:495] = b"%011o\0" % 150_000  # the size with its holes
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:512]))
    named = member(CARD)
    named.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "150000", "GNU.sparse.name": CARD}
    return {"a sparse file": bytes(block), "a sparse file by headers": named.tobuf(tarfile.PAX_FORMAT)}


def extended_header(name: bytes) -> bytes:
    header = member("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    header.size = len(name)
    return header.tobuf(tarfile.GNU_FORMAT) + name.ljust(512, b"\0")


async def test_a_good_upload_is_published_and_answers_under_its_id(server: Server, tmp_path: Path) -> None:
    trainer = Home(tmp_path / "trainer")
    manifest = make_version(trainer, make_base(trainer), "acme")
    pack_version(trainer, manifest.version, tmp_path / "v.tar.gz")
    content = (tmp_path / "v.tar.gz").read_bytes()
    response = await server.client.post("/admin/adapters/acme/versions", content=content)
    assert (response.status_code, response.json()) == (201, {"version": manifest.version, "created": True})
    folder = server.home.adapter_folder(manifest.version)
    assert {path.name for path in folder.iterdir()} == FILES
    await server.until_ready(manifest.version)
    assert (await server.chat(manifest.version)).json()["model"] == manifest.version
    again = await server.client.post("/admin/adapters/acme/versions", content=content)
    assert again.json() == {"version": manifest.version, "created": False}


@pytest.mark.slow
async def test_bad_uploads_get_every_reason_reach_no_engine_and_leave_no_file(server: Server, tmp_path: Path) -> None:
    cases = list(bad_uploads(tmp_path / "shop"))
    assert len(cases) >= 300
    for name, content, codes in cases:
        refused = await server.client.post("/admin/adapters/acme/versions", content=content)
        assert refused.status_code == 422, (name, refused.text)
        error = refused.json()["error"]
        assert error["reasons"], name
        assert {reason["code"] for reason in error["reasons"]} & codes, (name, error)
        assert str(server.home.root) not in refused.text, name
    assert server.engine.loads == 0
    assert list(server.home.adapters.iterdir()) == []


async def test_all_reasons_come_at_once(server: Server, tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "shop")

    def many(folder: Path) -> None:
        config(use_dora=True)(folder)
        tensors(A=torch.full((4, 9), float("nan")))(folder)
        change_manifest(folder, name="zest", chat_template_sha256="x" * 64)

    refused = await server.client.post("/admin/adapters/acme/versions", content=shop.archive(many))
    codes = {reason["code"] for reason in refused.json()["error"]["reasons"]}
    assert codes >= {
        "peft_unsupported",
        "tensors_mismatch",
        "manifest_invalid",
        "wrong_chat_template",
        "weights_not_finite",
    }


async def test_an_upload_that_is_too_large_or_breaks_off_leaves_nothing(server: Server) -> None:
    large = await server.client.post("/admin/adapters/acme/versions", content=bytes(300_000))
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 100
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await server.client.post("/admin/adapters/acme/versions", content=broken())
    await eventually(lambda: not list(server.home.adapters.iterdir()))
    bad_name = await server.client.post("/admin/adapters/Acme!/versions", content=b"x")
    assert (bad_name.status_code, bad_name.json()["error"]["code"]) == (400, "invalid_name")


@pytest.mark.both_databases
async def test_the_same_upload_twice_at_once_is_one_version(server: Server, tmp_path: Path) -> None:
    content = packed(Workshop(tmp_path / "shop").folder())
    answers = await asyncio.gather(
        *(server.client.post("/admin/adapters/acme/versions", content=content) for _ in range(8))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["version"] for answer in answers}) == 1
    assert len(list((server.home.adapters / "acme").iterdir())) == 1
