"""Power of the window test on real conversations, embedding by embedding.

    python -m bench.embeddings --same same.jsonl --other other.jsonl [--minilm FOLDER] [--model2vec FOLDER]

The reference consists of users' messages in 150 conversations of the same kind. A share of each window of 50 is of the
other kind. Prints the share of windows that the test rejects at the runtime's level, and the time a text takes. FOLDERs
hold a sentence encoder for transformers (mean pooling) and a model for model2vec.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.running import home_from_environment
from bench.shift import prompts
from polytone.contract.base import base_folder, list_bases
from polytone.measure.signals import asked_of
from polytone.serve.drift.embedding import token_embedding
from polytone.serve.drift.mmd import BLOCK, level, mmd_p_value, permutations
from polytone.serve.drift.sequential import RUN_LENGTH

REFERENCE, TRIALS = 150, 60
SHARES = (0.0, 0.1, 0.2, 0.4, 1.0)

Embed = Callable[[list[str]], Any]


def minilm(folder: Path) -> Embed:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def embed(texts: list[str]) -> Any:
        with torch.inference_mode():
            return np.stack([one(text) for text in texts])

    def one(text: str) -> Any:
        hidden = model(**tokenizer(text, return_tensors="pt", truncation=True)).last_hidden_state[0].mean(0)
        return (hidden / hidden.norm()).numpy()

    return embed


def model2vec(folder: Path) -> Embed:
    from model2vec import StaticModel

    model = StaticModel.from_pretrained(str(folder))

    def embed(texts: list[str]) -> Any:
        return model.encode(texts)

    return embed


def power(same: Any, other: Any, share: float) -> float:
    """The share of windows that the test rejects, with a new reference and window in every trial."""
    rejected = 0
    for trial in range(TRIALS):
        chance = np.random.default_rng(trial)
        order = chance.permutation(len(same))
        changed = chance.binomial(BLOCK, share)
        window = np.concatenate(
            [
                same[order[REFERENCE : REFERENCE + BLOCK - changed]],
                other[chance.choice(len(other), changed, replace=False)],
            ]
        )
        p = mmd_p_value(window, same[order[:REFERENCE]], permutations(RUN_LENGTH), trial)
        rejected += p <= level(RUN_LENGTH)
    return rejected / TRIALS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--same", type=Path, required=True)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--minilm", type=Path)
    parser.add_argument("--model2vec", type=Path)
    options = parser.parse_args()
    same, other = ([asked_of(p) for p in prompts(path, 400)] for path in (options.same, options.other))
    home = home_from_environment()
    embeddings: dict[str, Embed] = {
        "the base's token embeddings, whitened, 128 dimensions": token_embedding(
            base_folder(home, list_bases(home)[0]) / "source"
        )
    }
    if options.model2vec:
        embeddings["model2vec, distilled"] = model2vec(options.model2vec)
    if options.minilm:
        embeddings["MiniLM"] = minilm(options.minilm)
    print("| embedding | ms a text | " + " | ".join(f"{share:.0%} other" for share in SHARES) + " |")
    print("|---" * (len(SHARES) + 2) + "|")
    for name, embed in embeddings.items():
        began = time.perf_counter()
        mine, theirs = np.asarray(embed(same)), np.asarray(embed(other))
        ms = 1000 * (time.perf_counter() - began) / (len(same) + len(other))
        shares = [f"{power(mine, theirs, share):.0%}" for share in SHARES]
        print(f"| {name} | {ms:.1f} | " + " | ".join(shares) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
