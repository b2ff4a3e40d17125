"""Details of one version: its manifest and its evaluation."""

from ..api import Json
from ..markup import Html, failure, joined, listing, pairs, paragraph, success
from ..wording import counted, minute
from .words import state_words

UNREAD = "Its manifest cannot be read: its files are not on this server, or are damaged."
NOT_EVALUATED = "It was never evaluated on this machine, so no gate applies. Evaluate it: polytone evaluate {}"


def version_panel(details: Json) -> Html:
    """All details of a version."""
    manifest = details.get("manifest")
    facts = [("State on this server", state_words(details)), *(manifest_facts(manifest) if manifest else ())]
    return joined(
        evaluation_panel(details["version"], details.get("evaluation")),
        pairs(str(details["version"]), facts),
        Html() if manifest else paragraph(UNREAD, "hint"),
    )


def manifest_facts(manifest: Json) -> list[tuple[str, str]]:
    """The facts of a manifest, without missing ones."""
    rank, targets = manifest.get("rank"), manifest.get("targets") or []
    rows, tokens = manifest.get("rows"), manifest.get("assistant_tokens")
    facts = (
        ("Base", manifest.get("base")),
        ("Continues", manifest.get("parent")),
        ("Created", minute(manifest["created"]) + " UTC" if manifest.get("created") else None),
        ("Method", manifest.get("method")),
        ("Adapter", f"rank {rank} on {', '.join(map(str, targets))}" if rank else None),
        ("Trained on", f"{rows:,} conversations, {tokens or 0:,} tokens of answers" if rows is not None else None),
        ("Rows come from", export_words(manifest.get("export"))),
        ("Loss on held-out rows", loss_words(manifest)),
        ("System prompt", manifest.get("system_prompt")),
        ("Licence", manifest.get("licence")),
    )
    return [(name, str(value)) for name, value in facts if value]


def export_words(export: Json | None) -> str | None:
    if not export:
        return None
    return f"an export of feedback ({export.get('format')}), {counted(int(export.get('completions') or 0), 'answer')}"


def loss_words(manifest: Json) -> str | None:
    """The loss in nats per token of an answer; lower is better."""
    if manifest.get("held_out_loss") is None:
        return None
    words = f"{manifest['held_out_loss']:.3f}"
    for name, key in (("the base", "base_loss"), ("its parent", "parent_loss")):
        if manifest.get(key) is not None:
            words += f"; {name} has {manifest[key]:.3f}"
    return f"{words} (nats per token, lower is better)"


def evaluation_panel(version: str, evaluation: Json | None) -> Html:
    """The verdict, every failed gate, and every gate that could not be judged."""
    if not evaluation:
        return paragraph(NOT_EVALUATED.format(version), "hint")
    data = evaluation.get("data") or {}
    when = f"evaluated {minute(str(evaluation.get('when', '')))} UTC"
    on = f" on {data['rows']:,} conversations of {data.get('path')}" if data.get("rows") is not None else ""
    words = f"Verdict: {evaluation['verdict']} ({when}{on})."
    reasons = [reason["message"] for reason in evaluation.get("reasons") or ()]
    verdict = success(f"{words} No gate failed.") if evaluation.get("passed") else failure(words, reasons)
    unjudged = [f"{gate}: {why}" for gate, why in (evaluation.get("not_measured") or {}).items()]
    return joined(verdict, *((paragraph("Not judged:", "hint"), listing(unjudged)) if unjudged else ()))
