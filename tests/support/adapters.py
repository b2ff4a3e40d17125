"""Small adapter versions and bases for tests: real files, real digests, made in milliseconds."""

import json
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from polytone.contract.adapter import CARD, CONFIG, WEIGHTS, digest_adapter
from polytone.contract.base import Base, Quantization, base_folder
from polytone.contract.home import Home
from polytone.contract.manifest import (
    MANIFEST,
    BaseReference,
    Data,
    DataSource,
    Evaluation,
    Fingerprint,
    Manifest,
    Peft,
    Probe,
)
from polytone.contract.reference import ReferenceRow, describe_reference, write_reference

TEMPLATE = "t" * 64
MODULE = "model.layers.0.self_attn.q_proj"


def make_base(home: Home, base_id: str = "tiny", digest: str = "b" * 64) -> Base:
    """A base.json with one module to adapt, for tests that never load it."""
    base = Base(
        id=base_id,
        source="test",
        digest=digest,
        licence="Apache-2.0",
        quantization=Quantization(),
        chat_template_sha256=TEMPLATE,
        max_length=512,
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )
    folder = base_folder(home, base_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.json").write_text(base.model_dump_json(by_alias=True))
    (folder / "source").mkdir(exist_ok=True)
    save_file({f"{MODULE}.weight": torch.zeros(8, 8)}, folder / "source" / "model.safetensors")
    return base


def make_version(
    home: Home, base: Base, name: str, seed: int = 0, reference: Sequence[ReferenceRow] = (), **changes: Any
) -> Manifest:
    """A version folder with random weights; `changes` replace fields of its manifest."""
    work = home.root / f"work-{name}-{seed}"
    work.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    module = f"base_model.model.{MODULE}"
    save_file(
        {
            f"{module}.lora_A.weight": torch.rand(4, 8, generator=generator),
            f"{module}.lora_B.weight": torch.rand(8, 4, generator=generator),
        },
        work / WEIGHTS,
    )
    (work / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}))
    source = DataSource(path="rows.jsonl", sha256="0" * 64, rows=2, assistant_tokens=10)
    fields: dict[str, Any] = {
        "name": name,
        "digest": digest_adapter(work),
        "base": BaseReference(id=base.id, digest=base.digest),
        "quantization": base.quantization,
        "chat_template_sha256": base.chat_template_sha256,
        "peft": Peft(rank=4, alpha=8, targets=["q_proj"]),
        "recipe": {"name": name},
        "data": Data(train=source, held_out=source),
        "evaluation": Evaluation(base_loss=3.0, adapter_loss=2.0, tokens=10),
        "fingerprint": Fingerprint(
            dtype="float32",
            probes=[
                Probe(
                    messages=[{"role": "user", "content": "Hi"}],
                    prompt_tokens=[1, 2],
                    tokens=[3, 4],
                    logprobs=[-1.0, -1.0],
                    mean_logprob=-1.0,
                    base_mean_logprob=-2.0,
                )
            ],
        ),
        "drift_reference": describe_reference(list(reference), max_tokens=64),
        "licence": "Apache-2.0",
    }
    if reference:
        write_reference(work, list(reference))
    manifest = Manifest(**{**fields, **changes})
    (work / CARD).write_text("# card\n")
    (work / MANIFEST).write_text(manifest.model_dump_json(by_alias=True))
    target = home.adapter_folder(manifest.version)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(work, target)
    return manifest


def change_manifest(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**content, **changes}))


def changed_version(
    home: Home, version: Manifest, name: str, change: Callable[[str, torch.Tensor], torch.Tensor]
) -> Manifest:
    """A version `name` with the files of another but its tensors changed, and everything that follows from them."""
    work = home.root / f"work-{name}"
    shutil.copytree(home.adapter_folder(version.version), work)
    tensors = load_file(work / WEIGHTS)
    save_file({key: change(key, tensor).contiguous() for key, tensor in tensors.items()}, work / WEIGHTS)
    manifest = version.model_copy(update={"name": name, "digest": digest_adapter(work)})
    (work / MANIFEST).write_text(manifest.model_dump_json(by_alias=True))
    target = home.adapter_folder(manifest.version)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(work, target)
    return manifest
