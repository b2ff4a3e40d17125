"""Publishing: a finished run becomes an adapter version, the folder that a server loads."""

import shutil

from polytone.contract.adapter import (
    CARD,
    CONFIG,
    WEIGHTS,
    PeftConfig,
    check_config,
    check_tensors,
    digest_adapter,
    read_config,
    read_folder,
    read_version,
)
from polytone.contract.base import base_folder, module_shapes
from polytone.contract.errors import CheckError, combined
from polytone.contract.files import folder_written_whole
from polytone.contract.home import Home
from polytone.contract.manifest import MANIFEST, BaseReference, Manifest, Peft
from polytone.contract.modules import check_against_base
from polytone.contract.reference import describe_reference, write_reference
from polytone.contract.tensors import read_header

from .artifact.drift_reference import reply_limit
from .artifact.lora import same_weights
from .artifact.model_card import model_card
from .artifact.scoring import LEAST_CHANGE
from .run import Run
from .runs.record import close


def publish(home: Home, run: Run) -> Manifest:
    """Write the version's folder, whole or not at all, and read it back as a server would.

    Raises:
        CheckError: every reason of `check_adapter`; `nothing_learned`; or any reason `read_folder` gives.
        StorageError: `disk_full`.
    """
    adapter = run.folder / "adapter"
    config = check_adapter(home, run)
    check_learned(home, run)
    manifest = Manifest(
        name=run.recipe.name,
        digest=digest_adapter(adapter),
        base=BaseReference(id=run.base.id, digest=run.base.digest),
        quantization=run.base.quantization,
        chat_template_sha256=run.base.chat_template_sha256,
        peft=Peft(
            rank=config.r,
            alpha=config.lora_alpha,
            targets=sorted(config.target_modules),
            rslora=config.use_rslora,
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
    if target.exists():  # the same content was published before
        close(run.folder, manifest.version)
        return read_version(home, manifest.version)
    with folder_written_whole(target) as folder:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(adapter / name, folder / name)
        (folder / CARD).write_text(model_card(manifest, run.base, run.seconds))
        if run.reference:
            write_reference(folder, run.reference)
        (folder / MANIFEST).write_text(manifest.model_dump_json(by_alias=True, indent=2) + "\n")
        read_folder(folder)
    close(run.folder, manifest.version)
    return manifest


def check_adapter(home: Home, run: Run) -> PeftConfig:
    """Refuse an adapter that an engine would refuse or ignore in part; returns its configuration.

    Raises:
        CheckError: with every reason of `not_safetensors`, `config_invalid`, `peft_unsupported`, `tensors_mismatch`.
    """
    adapter = run.folder / "adapter"
    config, tensors = read_config(adapter), read_header(adapter / WEIGHTS)
    problems = [*check_config(adapter, config), *check_tensors(adapter, config, tensors)]
    problems += check_against_base(tensors, module_shapes(base_folder(home, run.base.id) / "source"))
    if problems:
        raise combined(problems)
    return config


def check_learned(home: Home, run: Run) -> None:
    """Refuse an adapter that changes nothing: held-out loss and every probe are those of the base.

    Losses are compared rather than weights, so that a negligible change counts as none. With the parent the weights are
    compared: training on verdicts changes a voice little, and an adapter that was not trained not at all.
    """
    probes = run.fingerprint.probes
    changes = [run.evaluation.adapter_loss - run.evaluation.base_loss]
    changes += [probe.mean_logprob - probe.base_mean_logprob for probe in probes]
    if max(abs(change) for change in changes) < LEAST_CHANGE:
        raise CheckError(
            f"{run.recipe.name}: nothing was learned. The voice answers exactly like the base, so it is not published. "
            "Raise training.learning_rate or the number of steps.",
            code="nothing_learned",
        )
    parent = run.recipe.parent
    if parent is not None and same_weights(run.folder / "adapter", home.adapter_folder(parent)):
        raise CheckError(
            f"{run.recipe.name}: nothing was learned. The weights are those of the parent {parent}, so it is not "
            "published. Raise training.learning_rate or the number of steps.",
            code="nothing_learned",
        )
