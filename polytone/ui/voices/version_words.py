"""What is known of one version: what it was made of and what its evaluation found."""

from ..api import Json
from ..markup import Safe, joined, listing, pairs, paragraph, told_badly, told_well
from ..plan import counted
from .words import moment, state_words

UNREAD = "What it was made of is not known here: its files are not on this server, or are damaged."
NOT_EVALUATED = "It was never evaluated on this machine, so no gate holds it back. To do so: polytone evaluate {}"


def version_panel(details: Json) -> Safe:
    """All that the server says of a version."""
    manifest = details.get("manifest")
    facts = [("State on this server", state_words(details)), *(manifest_facts(manifest) if manifest else ())]
    return joined(
        evaluation_panel(details["version"], details.get("evaluation")),
        pairs(str(details["version"]), facts),
        Safe() if manifest else paragraph(UNREAD, "hint"),
    )


def manifest_facts(manifest: Json) -> list[tuple[str, str]]:
    """What it was made of, as far as it is told."""
    rank, targets = manifest.get("rank"), manifest.get("targets") or []
    rows, tokens = manifest.get("rows"), manifest.get("assistant_tokens")
    found = (
        ("Base", manifest.get("base")),
        ("Continues", manifest.get("parent")),
        ("Made", moment(manifest["created"]) + " UTC" if manifest.get("created") else None),
        ("Method", manifest.get("method")),
        ("Adapter", f"rank {rank} on {', '.join(map(str, targets))}" if rank else None),
        ("Trained on", f"{rows:,} conversations, {tokens or 0:,} tokens of answers" if rows is not None else None),
        ("Rows come from", export_words(manifest.get("export"))),
        ("Loss on held-out rows", loss_words(manifest)),
        ("System prompt", manifest.get("system_prompt")),
        ("Licence", manifest.get("licence")),
    )
    return [(name, str(value)) for name, value in found if value]


def export_words(export: Json | None) -> str | None:
    if not export:
        return None
    return f"an export of feedback ({export.get('format')}), {counted(int(export.get('completions') or 0), 'answer')}"


def loss_words(manifest: Json) -> str | None:
    """In nats per token of an answer; lower is better."""
    if manifest.get("held_out_loss") is None:
        return None
    words = f"{manifest['held_out_loss']:.3f}"
    for name, key in (("the base", "base_loss"), ("the version it continues", "parent_loss")):
        if manifest.get(key) is not None:
            words += f"; {name} has {manifest[key]:.3f}"
    return f"{words} (nats a token, lower is better)"


def evaluation_panel(version: str, evaluation: Json | None) -> Safe:
    """The verdict, every gate that failed, and what could not be judged."""
    if not evaluation:
        return paragraph(NOT_EVALUATED.format(version), "hint")
    data = evaluation.get("data") or {}
    when = f"evaluated {moment(str(evaluation.get('when', '')))} UTC"
    on = f" on {data['rows']:,} conversations of {data.get('path')}" if data.get("rows") is not None else ""
    said = f"Verdict: {evaluation['verdict']} ({when}{on})."
    reasons = [reason["message"] for reason in evaluation.get("reasons") or ()]
    verdict = told_well(f"{said} No gate failed.") if evaluation.get("passed") else told_badly(said, reasons)
    unjudged = [f"{gate}: {why}" for gate, why in (evaluation.get("not_measured") or {}).items()]
    return joined(verdict, *((paragraph("Not judged:", "hint"), listing(unjudged)) if unjudged else ()))
