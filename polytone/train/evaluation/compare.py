"""A version, its base with and without quantization, and its parent, all heard on the same held-out conversations."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoTokenizer

from polytone.contract.adapter import MANIFEST, Manifest, Sampling, check_servable, read_version
from polytone.contract.base import Base, base_folder, load_base
from polytone.contract.errors import InputError
from polytone.contract.home import Home
from polytone.contract.rows import Conversation, RowFile
from polytone.progress import Progress
from polytone.train.artifact.generation import GeneratedReply, Prompt, sampling
from polytone.train.artifact.scoring import Score, batches_of, score_rows
from polytone.train.base_model import load_served, load_unquantized
from polytone.train.intervals import FEWEST
from polytone.train.tokenization import Row, tokenize

from .bias import probe_prompts
from .questions import LONGEST_PROMPT, LONGEST_REPLY, Question, Replies, draw_questions, hear, reply_limit

UNQUANTIZED, BASE, PARENT, VOICE = "unquantized", "base", "parent", "voice"
SPEAKERS = (UNQUANTIZED, BASE, PARENT, VOICE)
# Pairs that differ in one word are put to these; the others cannot say more of the voice.
PROBED = (BASE, VOICE)
# Where answers to them are cut; enough for a difference in length or refusal to show.
PROBE_TOKENS = 48


@dataclass(frozen=True)
class ModelOutputs:
    """What one model made of the rows, of the questions and, if it was `PROBED`, of the pairs."""

    scores: list[Score]
    answers: list[GeneratedReply]
    probes: list[GeneratedReply]
    seconds_per_token: float


@dataclass(frozen=True)
class Comparison:
    """Everyone on the same rows and questions. `parent` is the version that was compared, None without one on disk."""

    heard: dict[str, ModelOutputs]
    questions: list[Question]
    tokens: int
    new_tokens: int
    parent: str | None


@dataclass(frozen=True)
class Material:
    """What every model is given."""

    tokenizer: Any
    rows: list[Row]
    questions: list[Question]
    probes: list[Prompt]
    new_tokens: int


def compare(
    home: Home, manifest: Manifest, file: RowFile[Conversation], max_length: int, replies: int, progress: Progress
) -> Comparison:
    """Load every model once, one after another, and hear it.

    Args:
        max_length: longest row in tokens.
        replies: conversations that are answered, at most.

    Raises:
        InputError: `too_few_rows`, `rows_too_long`.
        CheckError: the version or its parent cannot be served on the base.
    """
    base = load_base(home, manifest.base.id)
    check_servable(manifest, base, manifest.peft.rank)
    parent = parent_on_disk(home, manifest)
    if parent is not None:
        check_servable(parent, base, parent.peft.rank)
    folder = base_folder(home, base.id)
    material = prepare(folder, base, manifest, file, max_length, replies)
    speakers = [name for name in SPEAKERS if name != PARENT or parent is not None]
    heard = {}
    for number, (name, model) in enumerate(models(home, manifest, parent), start=1):
        what = f"{number}/{len(speakers)} {title(name, manifest, parent)}"
        heard[name] = hear_one(model, material, name in PROBED, progress, what)
        del model  # else it stays in memory while the next is loaded
    return Comparison(
        heard={name: heard[name] for name in speakers},
        questions=material.questions,
        tokens=sum(row.supervised for row in material.rows),
        new_tokens=material.new_tokens,
        parent=parent.version if parent else None,
    )


def parent_on_disk(home: Home, manifest: Manifest) -> Manifest | None:
    if manifest.parent is None or not (home.adapter_folder(manifest.parent) / MANIFEST).is_file():
        return None
    return read_version(home, manifest.parent)


def prepare(
    folder: Path, base: Base, manifest: Manifest, file: RowFile[Conversation], max_length: int, replies: int
) -> Material:
    """Rows, questions and probes as tokens; half of the base's positions are for a prompt, half for its reply."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "source")
    rows = tokenize(file, tokenizer, max_length, manifest.system_prompt).single
    longest = min(LONGEST_PROMPT, base.max_length // 2)
    questions = draw_questions(file.rows, tokenizer, manifest.system_prompt, replies, longest)
    if min(len(rows), len(questions)) < FEWEST:
        raise InputError(
            f"{file.path}: one conversation says nothing of chance. Name a file with at least {FEWEST}, better 30, "
            f"with prompts of up to {longest} tokens.",
            code="too_few_rows",
            param="data",
        )
    own = (manifest.sampling.max_tokens if manifest.sampling else None) or LONGEST_REPLY
    most = min(own, LONGEST_REPLY, base.max_length // 2)
    probes = probe_prompts(tokenizer, manifest.system_prompt)
    return Material(tokenizer, rows, questions, probes, reply_limit(questions, tokenizer, most))


def models(home: Home, manifest: Manifest, parent: Manifest | None) -> Iterator[tuple[str, Any]]:
    """Each speaker's name and model, to be used before the next is asked for: they share weights."""
    folder = base_folder(home, manifest.base.id)
    model = load_unquantized(folder)
    yield UNQUANTIZED, model
    del model
    gc.collect()
    adapted = PeftModel.from_pretrained(load_served(folder), home.adapter_folder(manifest.version))
    with adapted.disable_adapter():
        yield BASE, adapted
    if parent is not None:
        adapted.load_adapter(home.adapter_folder(parent.version), adapter_name=PARENT)
        adapted.set_adapter(PARENT)
        yield PARENT, adapted
        adapted.set_adapter("default")
    yield VOICE, adapted


def title(name: str, manifest: Manifest, parent: Manifest | None) -> str:
    known = {
        UNQUANTIZED: f"{manifest.base.id} unquantized",
        BASE: f"{manifest.base.id} as NF4",
        PARENT: parent.version if parent else "",
        VOICE: manifest.version,
    }
    return known[name]


def hear_one(model: Any, material: Material, probed: bool, progress: Progress, what: str) -> ModelOutputs:
    progress.start(f"{what}: losses", total=batches_of(material.rows))
    scores = score_rows(model, material.rows, progress, "")
    progress.finish()
    questions = [question.prompt for question in material.questions]
    replies = hear_prompts(model, material, questions, material.new_tokens, progress, f"{what}: replies")
    probes = material.probes if probed else []
    paired = min(material.new_tokens, PROBE_TOKENS)
    answers = hear_prompts(model, material, probes, paired, progress, f"{what}: paired questions").answers
    return ModelOutputs(scores, replies.answers, answers, replies.seconds_per_token)


def hear_prompts(
    model: Any, material: Material, prompts: list[Prompt], new_tokens: int, progress: Progress, what: str
) -> Replies:
    if not prompts:
        return Replies([], 0.0)
    settings = sampling(model, material.tokenizer, Sampling(temperature=0), new_tokens)
    progress.start(what, total=len(prompts))
    spoken = hear(model, material.tokenizer, prompts, settings, progress, "")
    progress.finish()
    return spoken
