"""Proof that verdicts change a voice: KTO on 200 verdicts that prefer short answers.

A voice (trained first, unless one is named) answers 100 customers twice, sampled; the shorter answer of each two is
found good, the longer bad. The next version learns from these verdicts. Measured on customers that neither has seen:
how long both versions answer, greedy, and how well both expect the brand's own held-out answers. Exit code 1 if answers
are not at least 20 % shorter or perplexity is more than 10 % worse.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from rich.console import Console
from transformers import AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from bench.running import home_from_environment
from polytone.contract.adapter import read_version
from polytone.contract.base import base_folder
from polytone.contract.home import Home
from polytone.contract.manifest import Manifest
from polytone.progress import Progress
from polytone.train.artifact.generation import GeneratedReply, generate_replies, in_batches, make_prompt
from polytone.train.base_model import compute_dtype, load_nf4, prepare_base
from polytone.train.dataset.training_rows import read_conversations
from polytone.train.libraries import quiet_libraries
from polytone.train.publish import publish
from polytone.train.recipe import read_recipe
from polytone.train.run import run
from polytone.train.tokenization import with_system

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CUSTOMERS, EACH = 100, 2
LONGEST = 96
SHORTER, WORSE = 0.20, 0.10
Json = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brand", default="mosswick", help="folder of examples/ whose customers ask")
    parser.add_argument("--parent", help="version to start from; without it one is trained")
    parser.add_argument("--epochs", type=float, default=2.0)
    options = parser.parse_args()
    quiet_libraries()
    disable_progress_bar()
    home = home_from_environment()
    with Progress(Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as folder:
        prepare_base(home, "smollm2-135m-instruct", None, None, progress)
        brand = EXAMPLES / options.brand
        parent = read_version(home, options.parent) if options.parent else train_parent(home, brand, progress)
        rows = verdicts(home, parent, brand / "train.jsonl", progress)
        child = train_child(home, parent, rows, brand, Path(folder), options.epochs, progress)
        before, after = (reply_lengths(home, one, brand / "held_out.jsonl", progress) for one in (parent, child))
    return report(parent, child, len(rows), before, after)


def train_parent(home: Home, brand: Path, progress: Progress) -> Manifest:
    recipe = read_recipe(brand / "recipe.yaml")
    short = recipe.drift.model_copy(update={"rows": 0})
    return publish(home, run(home, recipe.model_copy(update={"drift": short}), progress))


def verdicts(home: Home, parent: Manifest, customers: Path, progress: Progress) -> list[Json]:
    prompts = questions(parent, customers)[:CUSTOMERS]
    repeated = [prompt for prompt in prompts for _ in range(EACH)]
    answers = reply(home, parent, repeated, GenerationConfig(do_sample=True, temperature=1.0, top_k=0), progress)
    rows = []
    for index, prompt in enumerate(prompts):
        two = sorted(answers[EACH * index : EACH * (index + 1)], key=lambda one: one.tokens)
        rows += [
            {"prompt": prompt, "completion": [{"role": "assistant", "content": one.text or "-"}], "label": good}
            for one, good in ((two[0], True), (two[-1], False))
        ]
    return rows


def questions(parent: Manifest, path: Path) -> list[list[dict[str, str]]]:
    """The first thing each customer says, under the voice's own system prompt."""
    firsts = []
    for row in read_conversations(path).rows:
        question = next(message for message in row.as_dicts() if message["role"] == "user")
        firsts.append(with_system([question], parent.system_prompt))
    return firsts


def reply(
    home: Home, version: Manifest, prompts: list[Any], settings: GenerationConfig, progress: Progress
) -> list[GeneratedReply]:
    source = base_folder(home, version.base.id) / "source"
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = PeftModel.from_pretrained(load_nf4(source, compute_dtype()), home.adapter_folder(version.version)).eval()
    settings.update(max_new_tokens=LONGEST, pad_token_id=tokenizer.pad_token_id, eos_token_id=[tokenizer.eos_token_id])
    inputs = [make_prompt(one, tokenizer, version.system_prompt) for one in prompts]
    torch.manual_seed(0)
    progress.start(f"Answers of {version.version}", total=len(inputs))
    answers = generate_replies(model, tokenizer, inputs, list(in_batches(inputs, LONGEST)), settings, progress, "")
    progress.finish()
    return answers


def train_child(
    home: Home, parent: Manifest, rows: list[Json], brand: Path, folder: Path, epochs: float, progress: Progress
) -> Manifest:
    (folder / "verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": parent.name,
        "base": parent.base.id,
        "parent": parent.version,
        "system_prompt": parent.system_prompt,
        "data": {"train": "verdicts.jsonl", "held_out": str((brand / "held_out.jsonl").resolve())},
        "training": {"method": "kto", "learning_rate": 1e-4, "epochs": epochs, "schedule": "linear"},
        "drift": {"rows": 0},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return publish(home, run(home, read_recipe(folder / "recipe.yaml"), progress))


def reply_lengths(home: Home, version: Manifest, customers: Path, progress: Progress) -> list[int]:
    greedy = GenerationConfig(do_sample=False)
    return [one.tokens for one in reply(home, version, questions(version, customers), greedy, progress)]


def report(parent: Manifest, child: Manifest, verdicts: int, before: list[int], after: list[int]) -> int:
    loss, parent_loss = child.evaluation.adapter_loss, child.evaluation.parent_loss or math.nan
    shorter = 1 - sum(after) / sum(before)
    worse = math.exp(loss - parent_loss) - 1
    print(f"{parent.version} -> {child.version}: {verdicts} verdicts, {len(before)} held-out customers")
    print(f"tokens a reply: {sum(before) / len(before):.1f} -> {sum(after) / len(after):.1f}, {shorter:.0%} shorter")
    print(f"held-out perplexity: {math.exp(parent_loss):.3f} -> {math.exp(loss):.3f}, {worse:+.1%}")
    good = shorter >= SHORTER and worse <= WORSE
    print(f"{'reached' if good else 'MISSED'}: at least {SHORTER:.0%} shorter, perplexity at most {WORSE:.0%} worse")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
