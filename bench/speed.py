"""How fast: Polytone against its peers on this machine, each figure a ratio of runs that took turns.

Every row starts the servers it needs; they stay up for the rows after it, and an idle one takes no processor time.
Runs of the two sides alternate, A B A B; a row's figure is the median of the pairs' ratios. Writes speed.json and
speed.png into the home folder's bench/. Exit code 1 if a row is below its bar.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import psutil

from bench import peers
from bench.load import Ask, Result, prompt, run, run_streams
from bench.peers import STREAMS, Peer
from bench.voices import BASE, EXAMPLES, bench_home, clones, prepare
from polytone.contract.home import Home
from polytone.contract.rows import read_conversations
from polytone.serve.database import open_database
from polytone.serve.registry import Registry
from polytone.serve.replicas import Replicas

SHORT, LONG, ANSWER = 16, 500, 64
MANY, RESIDENT = 512, 64


@dataclass(frozen=True)
class Figure:
    """A row's figure and the bar it has to reach: at least, or at most where `at_most`; none where it is reported."""

    row: str
    what: str
    value: float
    bar: float | None = None
    at_most: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return self.bar is None or (self.value <= self.bar if self.at_most else self.value >= self.bar)

    def __str__(self) -> str:
        bar = "reported" if self.bar is None else f"{'at most' if self.at_most else 'at least'} {self.bar:g}"
        return f"{'   ' if self.holds else 'NOT'} {self.row:14} {self.value:8.2f}  ({bar})  {self.what}"


class Bench:
    """The servers, started when a row first asks for them."""

    def __init__(self, home: Home, versions: list[str], stack: contextlib.ExitStack, pairs: int) -> None:
        self.home = home
        self.versions = versions
        self.pairs = pairs
        self._stack = stack
        self._peers: dict[str, Peer] = {}
        self._fresh = itertools.count()

    def polytone(self) -> Peer:
        return self._peer("polytone", lambda: peers.polytone(self.home), [BASE, *self.versions])

    def stock(self) -> Peer:
        return self._peer("stock", lambda: peers.vllm(self.home, BASE, self.versions, False), [BASE, *self.versions])

    def bare(self) -> Peer:
        return self._peer("bare", lambda: peers.vllm(self.home, BASE, self.versions, True), [BASE, *self.versions])

    def short(self, models: Sequence[str], count: int, tokens: int = ANSWER, words: int = SHORT) -> list[Ask]:
        """Requests no cache has seen, over the models in turn."""
        number = next(self._fresh)
        return [Ask(models[i % len(models)], prompt(words, (number, i)), tokens) for i in range(count)]

    def _peer(self, name: str, start: Callable[[], Any], models: list[str]) -> Peer:
        if name not in self._peers:
            print(f"starting {name} ...", flush=True)
            peer: Peer = self._stack.enter_context(start())
            print(f"{name} is up after {peer.seconds_to_start:.0f} s", flush=True)
            run(peer.url, self.short(models, len(models), 8), len(models))
            self._peers[name] = peer
        return self._peers[name]


def pairs(
    bench: Bench, one: Callable[[], float], other: Callable[[], float], times: int = 1
) -> tuple[float, list[list[float]]]:
    """Take turns; returns the median ratio of the first's figure to the second's, and all figures."""
    taken = [[one(), other()] for _ in range(times * bench.pairs)]
    return statistics.median(a / b for a, b in taken), taken


def mixed(bench: Bench) -> Iterator[Figure]:
    def speed(peer: Peer) -> float:
        return run(peer.url, bench.short([BASE, *bench.versions], STREAMS), STREAMS).tokens_per_second

    ours, stock = bench.polytone(), bench.stock()
    ratio, taken = pairs(bench, lambda: speed(ours), lambda: speed(stock))
    what = "base and 4 voices, 32 streams: tokens/s against stock vLLM"
    yield Figure("mixed", what, ratio, 3.0, details={"tokens_per_second": taken})


def prefill(bench: Bench) -> Iterator[Figure]:
    def seconds(peer: Peer) -> float:
        return run(peer.url, bench.short(bench.versions, 4, 1, LONG), 4).seconds

    ours, stock = bench.polytone(), bench.stock()
    ratio, taken = pairs(bench, lambda: 1 / seconds(ours), lambda: 1 / seconds(stock))
    details = {"seconds": [[1 / a, 1 / b] for a, b in taken]}
    yield Figure("prefill", "4 prompts of 500 tokens, 4 voices: time against stock vLLM", ratio, 5.0, details=details)


def tax(bench: Bench) -> Iterator[Figure]:
    ours = bench.polytone()
    for streams in (1, 8, STREAMS):

        def speed(model: str, streams: int = streams) -> float:
            return run(ours.url, bench.short([model], streams), streams).tokens_per_second

        ratio, taken = pairs(bench, lambda: speed(bench.versions[0]), lambda: speed(BASE), times=2)
        what = f"a voice against the base, {streams} streams: tokens/s"
        yield Figure(f"tax-{streams}", what, ratio, 0.9, details={"tokens_per_second": taken})


def api(bench: Bench) -> Iterator[Figure]:
    ours, bare = bench.polytone(), bench.bare()

    def speed(peer: Peer) -> float:
        return run(peer.url, bench.short([BASE, *bench.versions], STREAMS), STREAMS).tokens_per_second

    ratio, taken = pairs(bench, lambda: speed(ours), lambda: speed(bare))
    what = "Polytone's API against bare vLLM's, same engine: tokens/s"
    yield Figure("api", what, ratio, 0.97, details={"tokens_per_second": taken})
    first = {peer.name: list[float]() for peer in (ours, bare)}
    for _ in range(30):
        for peer in (ours, bare):
            first[peer.name].append(run(peer.url, bench.short(bench.versions[:1], 1, 2), 1).first_token(0.5))
    medians = {name: statistics.median(values) * 1000 for name, values in first.items()}
    added = medians[ours.name] - medians[bare.name]
    yield Figure("api-first", "added median time to first token, ms", added, 5.0, at_most=True, details=medians)


def many(bench: Bench) -> Iterator[Figure]:
    """Pinned versions, so that all of them can be named."""
    home = Home(bench.home.root / "many")
    home.adapters.mkdir(parents=True, exist_ok=True)
    link(bench.home.bases, home.bases)
    link(bench.home.adapter_folder(bench.versions[0]).parent, home.adapter_folder(bench.versions[0]).parent)
    versions = clones(home, bench.versions[0], MANY)
    registry = Registry(open_database(home.database_url))
    for version in versions:
        registry.publish(version, "bench")
    chosen = random.Random(0)  # noqa: S311 - the same popularity in every run
    zipf = [1 / rank for rank in range(1, MANY + 1)]
    count = 4 * STREAMS
    with peers.polytone(home, "polytone-many", max_resident_adapters=str(RESIDENT)) as ours:

        def asks(weights: list[float]) -> list[Ask]:
            models = chosen.choices(versions, weights, k=count)
            return [
                Ask(model, ask.messages, ask.tokens)
                for model, ask in zip(models, bench.short([""], count), strict=True)
            ]

        def answer(weights: list[float]) -> Result:
            return asyncio.run(run_streams(ours.url, asks(weights), STREAMS, stagger=0.1))

        # A server that has run for a while has proven all its voices; the first proof is the price of publishing one.
        run(ours.url, [Ask(model, prompt(SHORT, model), 1) for model in versions], STREAMS)
        answer(zipf)  # the popular ones are in memory after this
        one, uniform = [1.0] + [0.0] * (MANY - 1), [1.0] * MANY
        taken = [(answer(zipf), answer(one)) for _ in range(bench.pairs)]
        spread = answer(uniform)
    ratio = statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in taken)
    late = statistics.median(a.first_token(0.95) / b.first_token(0.95) for a, b in taken)
    details = {
        "tokens_per_second": [[a.tokens_per_second, b.tokens_per_second] for a, b in taken],
        "first_token_p95": [[a.first_token(0.95), b.first_token(0.95)] for a, b in taken],
        "uniform": [spread.tokens_per_second, spread.first_token(0.95)],
    }
    yield Figure("many", "512 voices, Zipf(1), 64 resident, against one voice: tokens/s", ratio, 0.8, details=details)
    yield Figure("many-first", "and the 95th percentile of the time to first token", late, 2.0, at_most=True)
    alone = statistics.median(b.tokens_per_second for _, b in taken)
    yield Figure("many-uniform", "512 voices asked for equally: tokens/s", spread.tokens_per_second / alone)


def link(source: Path, target: Path) -> None:
    if not target.exists():
        target.symlink_to(source)


def load(bench: Bench) -> Iterator[Figure]:
    ours = bench.polytone()
    database = open_database(bench.home.database_url)
    registry, replicas = Registry(database), Replicas(database)
    fresh = clones(bench.home, bench.versions[0], bench.pairs)
    for version in fresh:  # from an earlier run
        with contextlib.suppress(Exception):
            registry.retire(version, "bench")
    wait_for(lambda: not {one.version for one in replicas.residency()} & set(fresh))

    def longest_gap(version: str | None) -> float:
        async def publish() -> None:
            await asyncio.sleep(2)
            if version is not None:
                registry.publish(version, "bench")
                ready = {(version, "ready")}
                await asyncio.to_thread(
                    wait_for, lambda: ready <= {(one.version, one.state) for one in replicas.residency()}
                )

        asks = bench.short([BASE, *bench.versions], 8, 120)
        result = asyncio.run(run_streams(ours.url, asks, 8, beside=publish))
        # The first second is the streams' own start: prompts are read while the earliest answers begin.
        return max(gap for answer in result.answers for gap in answer.gaps[15:]) * 1000

    taken = [[longest_gap(version), longest_gap(None)] for version in fresh]
    with_load, added = max(a for a, _ in taken), statistics.median(a - b for a, b in taken)
    what = "8 streams while a version loads: longest gap between tokens, ms"
    yield Figure("load", what, with_load, 400, at_most=True, details={"longest_gap_ms": taken})
    yield Figure("load-adds", "of which the load adds, ms", added, 200, at_most=True)
    database.dispose()


def wait_for(done: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.2)


def same(bench: Bench) -> Iterator[Figure]:
    """Questions of the examples, greedily, in mixed batches."""
    ours, stock = bench.polytone(), bench.stock()
    rows = [row.as_dicts() for row in read_conversations(EXAMPLES / "aldermoor" / "train.jsonl").rows]
    models, questions = [BASE, *bench.versions], sorted({question(row) for row in rows})
    asks = [
        Ask(models[(i + again) % len(models)], [{"role": "user", "content": text}], 16, exact=False)
        for again in range(2)
        for i, text in enumerate(questions)
    ][:200]
    texts = [
        {
            (answer.ask.model, answer.ask.messages[0]["content"]): answer.text
            for answer in run(peer.url, asks, 16).answers
        }
        for peer in (ours, stock)
    ]
    different = [key for key, text in texts[0].items() if texts[1][key] != text]
    details = {"different": [[*key, texts[0][key], texts[1][key]] for key in different]}
    what = f"{len(texts[0])} prompts, greedy, mixed batches: answers that differ from stock vLLM's"
    yield Figure("same", what, len(different), 0, at_most=True, details=details)


def question(row: list[dict[str, str]]) -> str:
    return next(message["content"] for message in row if message["role"] == "user")


def turns(bench: Bench, file: Path | None = None) -> Iterator[Figure]:
    """Conversations of several turns: each turn sends the history again, which the prefix cache has."""
    rows = [row.as_dicts() for row in read_conversations(file or EXAMPLES / "aldermoor" / "train.jsonl").rows]
    several = [row for row in rows if sum(message["role"] == "user" for message in row) > 1][:8]

    def seconds(peer: Peer) -> float:
        began = time.perf_counter()
        for turn in range(3):
            asks = [
                Ask(bench.versions[i % 4], history, 24)
                for i, row in enumerate(several)
                if (history := until_turn(row, turn)) is not None
            ]
            run(peer.url, asks, 8)
        return time.perf_counter() - began

    ours, stock = bench.polytone(), bench.stock()
    ratio, taken = pairs(bench, lambda: 1 / seconds(ours), lambda: 1 / seconds(stock))
    details = {"seconds": [[1 / a, 1 / b] for a, b in taken]}
    yield Figure("turns", "conversations of several turns on 4 voices: time against stock vLLM", ratio, details=details)


def until_turn(row: list[dict[str, str]], turn: int) -> list[dict[str, str]] | None:
    """The messages up to the user's message number `turn`, which asks for an answer."""
    users = [i for i, message in enumerate(row) if message["role"] == "user"]
    return row[: users[turn] + 1] if turn < len(users) else None


def peft(bench: Bench) -> Iterator[Figure]:
    """transformers' generate on one voice, in a batch of 8: it cannot mix voices."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from polytone.contract.base import base_folder

    folder = base_folder(bench.home, BASE) / "nf4-dense"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(bench.home.adapter_folder(bench.versions[0]))).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")

    def generate() -> float:
        texts = [
            tokenizer.apply_chat_template(ask.messages, add_generation_prompt=True, tokenize=False)
            for ask in bench.short([""], 8)
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=ANSWER, min_new_tokens=ANSWER, do_sample=False)
        return 8 * ANSWER / (time.perf_counter() - began)

    ours = bench.polytone()
    generate()

    def speed() -> float:
        return run(ours.url, bench.short(bench.versions[:1], 8), 8).tokens_per_second

    ratio, taken = pairs(bench, speed, generate)
    what = "one voice, 8 streams: tokens/s against transformers and PEFT"
    yield Figure("peft", what, ratio, details={"tokens_per_second": taken})


ROWS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "mixed": mixed,
    "prefill": prefill,
    "same": same,
    "turns": turns,
    "tax": tax,
    "load": load,
    "api": api,
    "many": many,
    "peft": peft,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"rows to run, all by default: {', '.join(ROWS)}")
    parser.add_argument("--pairs", type=int, default=2, help="how often the two sides take turns")
    parser.add_argument("--conversations", type=Path, help="JSONL of messages for `turns`, in place of the examples")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    home = bench_home()
    versions = prepare(home)
    registry = Registry(open_database(home.database_url))
    for version in versions:
        registry.publish(version, "bench")
    figures, began = list[Figure](), time.monotonic()
    with contextlib.ExitStack() as stack:
        bench = Bench(home, versions, stack, options.pairs)
        for name in options.rows or ROWS:
            row = ROWS[name](bench) if name != "turns" else turns(bench, options.conversations)
            for figure in row:
                figures.append(figure)
                print(figure, flush=True)
    write(home.root, figures, time.monotonic() - began)
    print(f"{home.root / 'speed.json'} and .png, {time.monotonic() - began:.0f} s")
    return 0 if all(figure.holds for figure in figures) else 1


def write(folder: Path, figures: list[Figure], seconds: float) -> None:
    machine = {"processor": processor(), "cores": psutil.cpu_count(logical=False), "python": platform.python_version()}
    rows = [{**asdict(figure), "holds": figure.holds} for figure in figures]
    (folder / "speed.json").write_text(json.dumps({"machine": machine, "seconds": seconds, "rows": rows}, indent=1))
    plot(folder / "speed.png", [figure for figure in figures if not figure.at_most])


def processor() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")
    return platform.processor()


def plot(path: Path, figures: list[Figure]) -> None:
    mpl.use("agg")
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(figsize=(9, 0.5 * len(figures) + 1.2), layout="constrained")
    names = [figure.row for figure in reversed(figures)]
    axes.barh(names, [figure.value for figure in reversed(figures)], color="#4878a8")
    bars = [(number, figure.bar) for number, figure in enumerate(reversed(figures)) if figure.bar is not None]
    axes.plot([bar for _, bar in bars], [number for number, _ in bars], "k|", markersize=18, label="bar")
    axes.set_xscale("log")
    axes.set_xlabel("ratio, higher is better")
    axes.legend(loc="lower right")
    drawing.savefig(path, dpi=120)
    pyplot.close(drawing)


if __name__ == "__main__":
    sys.exit(main())
