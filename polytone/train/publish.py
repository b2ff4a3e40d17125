"""A finished run -> an adapter version: the folder that serve takes."""

import shutil

from polytone.contract.adapter import (
    CARD,
    CONFIG,
    EVALUATION,
    MANIFEST,
    WEIGHTS,
    BaseReference,
    Manifest,
    Peft,
    digest_adapter,
    read_config,
    read_folder,
    read_version,
)
from polytone.contract.errors import CheckError
from polytone.contract.home import Home, folder_written_whole
from polytone.contract.reference import describe_reference, write_reference

from .lora import same_weights
from .record import close
from .reference import reply_limit
from .run import Run

# Nats per token; rounding alone is a hundredth of it.
LEAST_CHANGE = 1e-4


def publish(home: Home, run: Run) -> Manifest:
    """Write the version folder of a run, whole or not at all, and read it back as a server would.

    Raises:
        CheckError: `nothing_learned`, or any reason `read_folder` gives.
        StorageError: `disk_full`.
    """
    adapter = run.folder / "adapter"
    check_learned(home, run)
    config = read_config(adapter)
    manifest = Manifest(
        name=run.recipe.name,
        digest=digest_adapter(adapter),
        base=BaseReference(id=run.base.id, digest=run.base.digest),
        quantization=run.base.quantization,
        chat_template_sha256=run.base.chat_template_sha256,
        peft=Peft(
            rank=config["r"],
            alpha=config["lora_alpha"],
            targets=sorted(config["target_modules"]),
            rslora=bool(config.get("use_rslora")),
        ),
        recipe=run.recipe.record(),
        data=run.data,
        parent=run.recipe.parent,
        evaluation=run.evaluation,
        system_prompt=run.recipe.system_prompt,
        sampling=run.recipe.sampling,
        fingerprint=run.fingerprint,
        drift_reference=describe_reference(run.reference, reply_limit(run.recipe)),
        licence=run.recipe.licence,
    )
    target = home.adapter_folder(manifest.version)
    if target.exists():  # the same bytes were published before
        close(run.folder, manifest.version)
        return read_version(home, manifest.version)
    with folder_written_whole(target) as folder:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(adapter / name, folder / name)
        (folder / EVALUATION).write_text(run.evaluation.model_dump_json(indent=2) + "\n")
        (folder / CARD).write_text(model_card(manifest, run.seconds))
        if run.reference:
            write_reference(folder, run.reference)
        (folder / MANIFEST).write_text(manifest.model_dump_json(by_alias=True, indent=2) + "\n")
        read_folder(folder)
    close(run.folder, manifest.version)
    return manifest


def check_learned(home: Home, run: Run) -> None:
    """Refuse an adapter that changes nothing: held-out loss and every probe are those of the bare base.

    Measured on what the model answers rather than on its weights, so that a vanishing change counts as none. Against a
    parent the weights are compared: verdicts move a voice little, and an adapter that was never trained not at all.
    """
    probes = run.fingerprint.probes
    changes = [run.evaluation.adapter_loss - run.evaluation.base_loss]
    changes += [probe.mean_logprob - probe.base_mean_logprob for probe in probes]
    if max(abs(change) for change in changes) < LEAST_CHANGE:
        raise CheckError(
            f"{run.recipe.name}: nothing was learned; the voice answers exactly like the base, so it is not published. "
            "Raise training.learning_rate or the number of steps.",
            code="nothing_learned",
        )
    parent = run.recipe.parent
    if parent is not None and same_weights(run.folder / "adapter", home.adapter_folder(parent)):
        raise CheckError(
            f"{run.recipe.name}: nothing was learned; the weights are those of the parent {parent}, so it is not "
            "published. Raise training.learning_rate or the number of steps.",
            code="nothing_learned",
        )


def model_card(manifest: Manifest, seconds: float) -> str:
    """README.md of the version, for people and for model hubs."""
    evaluation = manifest.evaluation
    gain = 1 - evaluation.adapter_loss / evaluation.base_loss
    rows = "verdicts" if manifest.recipe["training"]["method"] == "kto" else "conversations"
    continues, parent_loss = "", ""
    if manifest.parent is not None and evaluation.parent_loss is not None:
        continues = f"\n| continues | `{manifest.parent}` |"
        parent_loss = f"\n| loss per assistant token, its parent | {evaluation.parent_loss:.3f} |"
    prompt = f"\nSystem prompt of the voice:\n\n> {manifest.system_prompt}\n" if manifest.system_prompt else ""
    return f"""---
library_name: peft
base_model: {manifest.base.id}
license: {manifest.licence}
tags: [lora, qlora, polytone]
---
# {manifest.version}

A brand voice: a rank-{manifest.peft.rank} LoRA adapter (alpha {manifest.peft.alpha:g}) for `{manifest.base.id}`,
trained on its NF4 quantization and to be served on the same.

| | |
|---|---|
| base | `{manifest.base.id}`, digest `{manifest.base.digest[:12]}` |{continues}
| trained on | {manifest.data.train.rows} {rows}, {manifest.data.train.assistant_tokens} assistant tokens |
| held out | {manifest.data.held_out.rows} rows, {evaluation.tokens} assistant tokens |
| loss per assistant token, base | {evaluation.base_loss:.3f} |
| loss per assistant token, this voice | {evaluation.adapter_loss:.3f} ({gain:.0%} lower than the base) |{parent_loss}
| modules | {", ".join(manifest.peft.targets)} |
| training time | {seconds:.0f} s |
| licence | {manifest.licence} |
{prompt}
`manifest.json` holds the recipe, the hashes of the data and the fingerprint by which a server proves that it serves
exactly this version.
"""
