"""Views of voices and versions: states on this replica, what a version was made of, results of its evaluation."""

import json
from pathlib import Path
from typing import Any

from polytone.contract.adapter import EVALUATION
from polytone.contract.errors import CheckError, NotFoundError
from polytone.contract.evaluation import GateVerdict
from polytone.contract.home import Home
from polytone.contract.manifest import DataSource, Manifest, read_manifest
from polytone.contract.version_id import voice_of
from polytone.serve.adapters.promotion_gates import verdict_if_readable
from polytone.serve.services import Services


def all_voices(services: Services) -> list[dict[str, Any]]:
    """Every voice with its versions: the desired state, and what this replica answers with. Blocks."""
    desired = services.registry.desired()
    states = services.adapters.states()
    resident = services.adapters.loaded()
    here = services.adapters.rollouts
    versions = desired.versions | set(states)
    names = sorted({voice_of(version) for version in versions} | set(desired.rollouts))
    return [
        {
            "name": name,
            "rollout": desired.rollouts[name].as_json() if name in desired.rollouts else None,
            "answers": here[name].as_json() if name in here else None,
            "versions": [
                {
                    "version": version,
                    "state": states.get(version, ("published", None))[0],
                    "reason": states.get(version, ("published", None))[1],
                    "resident": version in resident,
                }
                for version in sorted(versions)
                if voice_of(version) == name
            ],
        }
        for name in names
    ]


def view_version(services: Services, version: str) -> dict[str, Any]:
    """`manifest` is null where its files are not here or damaged, `evaluation` where none was made on this machine.
    Blocks.

    Raises:
        NotFoundError: `version_not_found`, if it was never published.
    """
    states = {row.id: row.state for row in services.registry.versions()}
    if version not in states:
        raise NotFoundError(f"No version {version!r} was published here.", code="version_not_found", param="digest")
    state, reason = services.adapters.states().get(version, (states[version], None))
    manifest = services.adapters.manifest(version) or manifest_if_readable(services.home, version)
    verdict = verdict_if_readable(services.home, version)
    return {
        "version": version,
        "state": state,
        "reason": reason,
        "resident": version in services.adapters.loaded(),
        "manifest": facts(manifest) if manifest else None,
        "evaluation": findings(services.home, verdict) if verdict else None,
    }


def manifest_if_readable(home: Home, version: str) -> Manifest | None:
    """Not checked against the weights, which takes long: whoever loads the version does that."""
    try:
        manifest = read_manifest(home.adapter_folder(version))
    except (OSError, CheckError):
        return None
    return manifest if manifest.version == version else None


def facts(manifest: Manifest) -> dict[str, Any]:
    """What a person asks of a version; the whole manifest lies in its folder."""
    evaluation, train = manifest.evaluation, manifest.data.train
    training = manifest.recipe.get("training")
    return {
        "base": manifest.base.id,
        "created": manifest.created.isoformat(timespec="seconds"),
        "parent": manifest.parent,
        "method": training.get("method") if isinstance(training, dict) else None,
        "rank": manifest.peft.rank,
        "targets": manifest.peft.targets,
        "rows": train.rows,
        "assistant_tokens": train.assistant_tokens,
        "export": export_facts(train),
        "held_out_loss": evaluation.adapter_loss,
        "base_loss": evaluation.base_loss,
        "parent_loss": evaluation.parent_loss,
        "system_prompt": manifest.system_prompt,
        "licence": manifest.licence,
    }


def export_facts(source: DataSource) -> dict[str, Any] | None:
    """How many answers of traffic it was trained on; the manifest has every id."""
    if source.export is None:
        return None
    return {**source.export.model_dump(exclude={"completions"}), "completions": len(source.export.completions)}


def findings(home: Home, verdict: GateVerdict) -> dict[str, Any]:
    """The verdict with every gate and figure, as far as its evaluation's folder lies in the home; else only with the
    gates that failed."""
    document = document_of(home, verdict)
    failed = [{**reason.model_dump(exclude={"message"}), "passed": False} for reason in verdict.reasons]
    return {
        **verdict.model_dump(mode="json", exclude={"version"}),
        "gates": document.get("held", failed),
        "figures": document.get("models", {}),
    }


def document_of(home: Home, verdict: GateVerdict) -> dict[str, Any]:
    """evaluation.json of this very verdict; empty where there is none, as after `polytone evaluate --out`."""
    if verdict.folder is None or Path(verdict.folder).name != verdict.folder:
        return {}
    try:
        document = json.loads((home.evaluations / verdict.folder / EVALUATION).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    of_this = isinstance(document, dict) and document.get("verdict") == verdict.model_dump(mode="json")
    return document if of_this else {}
