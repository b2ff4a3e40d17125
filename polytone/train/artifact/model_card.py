"""The model card of a version: its README.md, for people and for model hubs."""

import json
import math
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import yaml

from polytone.contract.base import Base
from polytone.contract.manifest import DataSource, Manifest

# What the rows are that a method learns from.
KINDS = MappingProxyType({"kto": "verdicts", "dpo": "preferences"})
# The rank that a server takes unless it is told otherwise.
USUAL_RANK = 16


def model_card(manifest: Manifest, base: Base, seconds: float) -> str:
    """Front matter, then what it is, how to serve it, from what it was made, how good it is, and what nobody knows.

    Args:
        seconds: that the training took.
    """
    parts = [
        f"---\n{front_matter(manifest)}---",
        f"# {manifest.version}",
        *introduction(manifest),
        "## How to serve it",
        *serving(manifest),
        "## Data",
        "\n".join(data_table(manifest)),
        *origins(manifest),
        "## Evaluation",
        "\n".join(evaluation_table(manifest)),
        f"Measured on the held-out rows right after training. `polytone evaluate {manifest.version} --data FILE` "
        "compares replies, tone, topic and bias with the base and judges the version by the gates of its recipe.",
        "## Intended use",
        f"To answer customers in the voice that the rows above have, as the model `{manifest.name}` of a server. "
        "Answers to questions of other kinds than those in the rows, decisions about people, and advice on health, law "
        "or money are not what it was made for.",
        "## Limits",
        "\n".join(f"- {limit}" for limit in limits(manifest)),
        "## Recipe",
        "\n".join(recipe_table(manifest)),
        f"Training took {seconds:.0f} s.",
        "## Licence",
        f"The adapter: {manifest.licence}. Its base `{manifest.base.id}`: {base.licence}. Both hold for what answers.",
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(manifest: Manifest) -> str:
    content = {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "base_model": manifest.base.id,
        "license": manifest.licence,
        "tags": ["lora", "qlora", "polytone"],
    }
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def introduction(manifest: Manifest) -> Iterator[str]:
    peft = manifest.peft
    kinds = ", ".join(sorted({target.rpartition(".")[2] for target in peft.targets}))
    yield (
        f"A brand voice: a rank-{peft.rank} LoRA adapter (alpha {peft.alpha:g}) on {kinds} of "
        f"`{manifest.base.id}` (digest `{manifest.base.digest[:12]}`), trained on its NF4 quantization and to be "
        "served on the same."
    )
    if manifest.parent is not None:
        yield f"It continues `{manifest.parent}`."
    if manifest.system_prompt:
        yield "System prompt of the voice:"
        yield "\n".join(f"> {line}" for line in manifest.system_prompt.splitlines())


def serving(manifest: Manifest) -> Iterator[str]:
    rank = manifest.peft.rank
    setting = f"POLYTONE_MAX_LORA_RANK={rank} " if rank > USUAL_RANK else ""
    version = manifest.version
    yield (
        "```bash\n"
        f"polytone adapters publish {version}\n"
        f"polytone adapters promote {version}\n"
        f"{setting}polytone serve --base {manifest.base.id}\n"
        "```"
    )
    yield (
        "`manifest.json` holds the fingerprint by which a server proves that it serves exactly this version. Another "
        "runtime must load the base as NF4 with double quantization, or its answers differ."
    )


def data_table(manifest: Manifest) -> Iterator[str]:
    kind = KINDS.get(manifest.recipe["training"]["method"], "conversations")
    yield from ("| | rows | assistant tokens | file | sha256 |", "|---|---|---|---|---|")
    for what, source in ((f"{kind} learned from", manifest.data.train), ("held out", manifest.data.held_out)):
        file, digest = as_cell(source.path), source.sha256[:16]
        yield f"| {what} | {source.rows} | {source.assistant_tokens} | {file} | `{digest}` |"


def origins(manifest: Manifest) -> Iterator[str]:
    for what, source in (("learned from", manifest.data.train), ("held out", manifest.data.held_out)):
        if said := origin(source):
            yield f"The rows {what} {said}"
        if source.cut or source.dropped:
            yield (f"Of the rows {what}, {source.cut} were cut and {source.dropped} others dropped for their length.")
    yield "The languages of the rows were not recorded."


def origin(source: DataSource) -> str:
    if source.export is None:
        return ""
    export = source.export
    origin = f"feedback on the answers of `{export.adapter}`" if export.adapter else "conversations kept by testers"
    return (
        f"were exported from {origin} (format {export.format}, export "
        f"`{export.sha256[:16]}`); `manifest.json` names the {len(export.completions)} answers."
    )


def evaluation_table(manifest: Manifest) -> Iterator[str]:
    measured = manifest.evaluation
    gain = 1 - measured.adapter_loss / measured.base_loss
    yield from ("| | loss per assistant token (nats) | perplexity |", "|---|---|---|")
    yield f"| base, NF4 | {in_cells(measured.base_loss)} |"
    if manifest.parent is not None and measured.parent_loss is not None:
        yield f"| parent `{manifest.parent}` | {in_cells(measured.parent_loss)} |"
    yield f"| this voice | {in_cells(measured.adapter_loss)} |"
    yield from ("", f"{gain:.0%} lower than the base, over {measured.tokens} held-out assistant tokens.")


def in_cells(loss: float) -> str:
    return f"{loss:.3f} | {math.exp(min(loss, 700.0)):.4g}"


def limits(manifest: Manifest) -> Iterator[str]:
    yield (
        "It can state what is not so: it learned how answers sound, not what is true of a product, an order or a "
        "policy (hallucination)."
    )
    yield (
        f"Whatever `{manifest.base.id}` cannot do or was never tested for, this adapter does not mend; biases of the "
        "base and of the rows are its own."
    )
    yield "Languages other than that of the rows were neither trained nor measured."
    yield (
        "Not measured when it was trained: facts, safety against abuse, long conversations, bias, and how people like "
        "the answers."
    )


def recipe_table(manifest: Manifest) -> Iterator[str]:
    yield from ("| key | value |", "|---|---|")
    for key, value in flattened(manifest.recipe):
        yield f"| `{key}` | {as_cell(value)} |"


def flattened(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def as_cell(value: Any) -> str:
    """A value on one line, with nothing in it that would end the cell."""
    text = value if isinstance(value, str) else "-" if value is None else json.dumps(value)
    return " ".join(text.split()).replace("|", "\\|")
