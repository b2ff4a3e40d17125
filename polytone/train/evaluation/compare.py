"""A version, its base with and without quantization, and its parent, all run on the same held-out conversations."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoTokenizer

from polytone.contract.adapter import check_servable, read_version
from polytone.contract.base import Base, base_folder, load_base
from polytone.contract.errors import InputError
from polytone.contract.home import Home
from polytone.contract.manifest import MANIFEST, Manifest, Sampling
from polytone.contract.rows import Conversation
from polytone.progress import Progress
from polytone.train.artifact.generation import GeneratedReply, Prompt, sampling
from polytone.train.artifact.scoring import Score, batch_count, score_rows
from polytone.train.base_model import load_served, load_unquantized
from polytone.train.dataset.training_rows import RowFile
from polytone.train.intervals import LEAST_CONVERSATIONS
from polytone.train.tokenization import Row, tokenize

from .bias import paired_prompts
from .questions import LONGEST_PROMPT, LONGEST_REPLY, Question, Replies, draw_questions, generate_all, reply_limit

UNQUANTIZED, BASE, PARENT, VOICE = "unquantized", "base", "parent", "voice"
MODELS = (UNQUANTIZED, BASE, PARENT, VOICE)
# The models that get the paired questions; the others would say nothing more of the voice.
PAIRED_MODELS = (BASE, VOICE)
# Where replies to them are cut; enough for a difference in length or refusal to show.
PAIRED_TOKENS = 48


@dataclass(frozen=True)
class Extent:
    """How much is evaluated.

    Args:
        max_length: longest row in tokens.
        replies: conversations of which a turn is answered, at most.
        paired: whether the paired questions are asked too.
    """

    max_length: int = 2048
    replies: int = 64
    paired: bool = True


@dataclass(frozen=True)
class ModelOutputs:
    """One model's scores of the rows, and its replies to the questions and, if it got them, the paired questions."""

    scores: list[Score]
    replies: list[GeneratedReply]
    paired_replies: list[GeneratedReply]
    seconds_per_token: float


@dataclass(frozen=True)
class Comparison:
    """All models on the same rows and questions.

    `parent` is the version that was compared, None without one on disk; `new_tokens` is where replies were cut.
    """

    outputs: dict[str, ModelOutputs]
    questions: list[Question]
    tokens: int
    new_tokens: int
    parent: str | None


@dataclass(frozen=True)
class Inputs:
    """What every model is given."""

    tokenizer: Any
    rows: list[Row]
    questions: list[Question]
    paired: list[Prompt]
    new_tokens: int


def compare(
    home: Home, manifest: Manifest, file: RowFile[Conversation], extent: Extent, progress: Progress
) -> Comparison:
    """Load the models one after another, each once, and run each on the same inputs.

    Raises:
        InputError: `too_few_rows`, `rows_too_long`.
        CheckError: the version or its parent cannot be served on the base.
    """
    base = load_base(home, manifest.base.id)
    check_servable(manifest, base, manifest.peft.rank)
    parent = parent_on_disk(home, manifest)
    if parent is not None:
        check_servable(parent, base, parent.peft.rank)
    inputs = prepare(base_folder(home, base.id), base, manifest, file, extent)
    names = [name for name in MODELS if name != PARENT or parent is not None]
    outputs = {}
    for number, (name, model) in enumerate(load_models(home, manifest, parent), start=1):
        label = f"{number}/{len(names)} {title(name, manifest, parent)}"
        outputs[name] = run_model(model, inputs, name in PAIRED_MODELS, progress, label)
        del model  # else it stays in memory while the next is loaded
    return Comparison(
        outputs={name: outputs[name] for name in names},
        questions=inputs.questions,
        tokens=sum(row.supervised for row in inputs.rows),
        new_tokens=inputs.new_tokens,
        parent=parent.version if parent else None,
    )


def parent_on_disk(home: Home, manifest: Manifest) -> Manifest | None:
    if manifest.parent is None or not (home.adapter_folder(manifest.parent) / MANIFEST).is_file():
        return None
    return read_version(home, manifest.parent)


def prepare(folder: Path, base: Base, manifest: Manifest, file: RowFile[Conversation], extent: Extent) -> Inputs:
    """Rows and questions as tokens; half of the base's positions are for a prompt, half for its reply."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "source")
    rows = tokenize(file, tokenizer, extent.max_length, manifest.system_prompt).single
    longest = min(LONGEST_PROMPT, base.max_length // 2)
    questions = draw_questions(file.rows, tokenizer, manifest.system_prompt, extent.replies, longest)
    if min(len(rows), len(questions)) < LEAST_CONVERSATIONS:
        raise InputError(
            f"{file.path}: one conversation cannot tell a difference from chance. Name a file with at least "
            f"{LEAST_CONVERSATIONS} conversations, better 30, with prompts of up to {longest} tokens.",
            code="too_few_rows",
            param="data",
        )
    voice_limit = (manifest.sampling.max_tokens if manifest.sampling else None) or LONGEST_REPLY
    most = min(voice_limit, LONGEST_REPLY, base.max_length // 2)
    paired = paired_prompts(tokenizer, manifest.system_prompt) if extent.paired else []
    return Inputs(tokenizer, rows, questions, paired, reply_limit(questions, tokenizer, most))


def load_models(home: Home, manifest: Manifest, parent: Manifest | None) -> Iterator[tuple[str, Any]]:
    """Each name of `MODELS` with its model, to be used before the next is asked for: they share weights."""
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
    titles = {
        UNQUANTIZED: f"{manifest.base.id} unquantized",
        BASE: f"{manifest.base.id} as NF4",
        PARENT: parent.version if parent else "",
        VOICE: manifest.version,
    }
    return titles[name]


def run_model(model: Any, inputs: Inputs, paired: bool, progress: Progress, label: str) -> ModelOutputs:
    progress.start(f"{label}: losses", total=batch_count(inputs.rows))
    scores = score_rows(model, inputs.rows, progress, "")
    progress.finish()
    prompts = [question.prompt for question in inputs.questions]
    replies = reply_to(model, inputs, prompts, inputs.new_tokens, progress, f"{label}: replies")
    paired_tokens = min(inputs.new_tokens, PAIRED_TOKENS)
    paired_prompts = inputs.paired if paired else []
    paired_replies = reply_to(model, inputs, paired_prompts, paired_tokens, progress, f"{label}: paired questions")
    return ModelOutputs(scores, replies.replies, paired_replies.replies, replies.seconds_per_token)


def reply_to(
    model: Any, inputs: Inputs, prompts: list[Prompt], new_tokens: int, progress: Progress, label: str
) -> Replies:
    """Greedy replies."""
    if not prompts:
        return Replies([], 0.0)
    settings = sampling(model, inputs.tokenizer, Sampling(temperature=0), new_tokens)
    progress.start(label, total=len(prompts))
    replies = generate_all(model, inputs.tokenizer, prompts, settings, progress)
    progress.finish()
    return replies
