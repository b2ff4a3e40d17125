"""The model card of a version: its README.md, for people and for model hubs."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub import ModelCardData

from polytone.contract.base import Base
from polytone.contract.manifest import Manifest
from polytone.train.documents import one_line, render, table

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
# The kind of rows that a method learns from.
KINDS = MappingProxyType({"kto": "verdicts", "dpo": "preferences"})
# The largest rank that a server takes by default.
USUAL_RANK = 16


def model_card(manifest: Manifest, base: Base, seconds: float) -> str:
    """The card: metadata for hubs, then what the version is, how to serve it, its data, quality and limits.

    Args:
        seconds: that the training took.
    """
    metadata = ModelCardData(
        library_name="peft",
        pipeline_tag="text-generation",
        base_model=manifest.base.id,
        license=manifest.licence,
        tags=["lora", "qlora", "polytone"],
    )
    measured = manifest.evaluation
    text = render(
        TEMPLATE,
        version=manifest.version,
        manifest=manifest,
        base=base,
        seconds=seconds,
        modules=sorted({target.rpartition(".")[2] for target in manifest.peft.targets}),
        usual_rank=USUAL_RANK,
        data=data_table(manifest),
        sources=[("training", manifest.data.train), ("held-out", manifest.data.held_out)],
        evaluation=evaluation_table(manifest),
        gain=f"{1 - measured.adapter_loss / measured.base_loss:.0%}",
        recipe=table(("key", "value"), ((f"`{key}`", as_cell(value)) for key, value in flattened(manifest.recipe))),
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{text}"


def data_table(manifest: Manifest) -> str:
    kind = KINDS.get(manifest.recipe["training"]["method"], "conversations")
    sources = ((f"training {kind}", manifest.data.train), ("held-out rows", manifest.data.held_out))
    rows = [
        (name, str(source.rows), str(source.assistant_tokens), as_cell(source.path), f"`{source.sha256[:16]}`")
        for name, source in sources
    ]
    return table(("", "rows", "assistant tokens", "file", "sha256"), rows)


def evaluation_table(manifest: Manifest) -> str:
    measured = manifest.evaluation
    losses = [("base, NF4", measured.base_loss), ("this voice", measured.adapter_loss)]
    if manifest.parent is not None and measured.parent_loss is not None:
        losses.insert(1, (f"parent `{manifest.parent}`", measured.parent_loss))
    rows = [(name, f"{loss:.3f}", f"{math.exp(min(loss, 700.0)):.4g}") for name, loss in losses]
    return table(("", "loss per assistant token (nats)", "perplexity"), rows)


def flattened(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a recipe with its value."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def as_cell(value: Any) -> str:
    return one_line(value if isinstance(value, str) else "-" if value is None else json.dumps(value))
