"""How fast: Polytone against its peers on this machine, each figure a ratio of runs that took turns.

Every row starts the servers it needs; they stay up for the rows after it, and an idle one takes no processor time.
Runs of the two sides alternate, A B A B; a row's figure is the median of the pairs' ratios. Writes speed.json and
speed.png into the home folder's bench/. Exit code 1 if a row is below its bar.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.figures import Figure, write
from bench.llama import for_llama, llama
from bench.load import Ask, Result, prompt, run
from bench.peers import STREAMS, vllm
from bench.running import polytone_server
from bench.voices import BASE, EXAMPLES, bench_home, clones, prepare
from polytone.contract.home import Home
from polytone.serve.adapters.registry import Registry
from polytone.serve.adapters.replicas import Replicas
from polytone.serve.database.session import open_database
from polytone.train.dataset.training_rows import read_conversations

SHORT, LONG, ANSWER = 16, 500, 64
MANY, RESIDENT = 512, 64


class Bench:
    """The servers, started when a row first asks for them, and what the load generator took beside them."""

    def __init__(
        self, home: Home, versions: list[str], stack: contextlib.ExitStack, pairs: int, llama: Path | None = None
    ) -> None:
        self.home = home
        self.versions = versions
        self.models = [BASE, *versions]
        self.pairs = pairs
        self.llama_folder = llama
        self.ran_seconds = 0.0
        self.own_cpu_seconds = 0.0
        self._stack = stack
        self._urls: dict[str, str] = {}
        self._fresh = itertools.count()

    def polytone(self) -> str:
        return self._url("polytone", lambda log: polytone_server(self.home, log, page="false"))

    def stock(self) -> str:
        return self._url("stock vLLM", lambda log: vllm(self.home, BASE, self.versions, False, log))

    def bare(self) -> str:
        return self._url("vLLM with the plugin", lambda log: vllm(self.home, BASE, self.versions, True, log))

    def asks(self, models: Sequence[str], count: int, tokens: int = ANSWER, words: int = SHORT) -> list[Ask]:
        """Requests no cache has seen, over the models in turn."""
        number = next(self._fresh)
        return [Ask(models[i % len(models)], prompt(words, (number, i)), tokens) for i in range(count)]

    def run(self, url: str, asks: Sequence[Ask], streams: int, **more: Any) -> Result:
        result = run(url, asks, streams, **more)
        self.ran_seconds += result.seconds
        self.own_cpu_seconds += result.own_cpu_seconds
        return result

    def speed(self, url: str, models: Sequence[str], streams: int) -> float:
        """Tokens per second of one short request on every stream."""
        return self.run(url, self.asks(models, streams), streams).tokens_per_second

    def log(self, name: str) -> Path:
        return self.home.root / "logs" / f"{name.replace(' ', '-')}.log"

    def _url(self, name: str, start: Callable[[Path], contextlib.AbstractContextManager[str]]) -> str:
        if name not in self._urls:
            print(f"starting {name} ...", flush=True)
            began = time.monotonic()
            self._urls[name] = self._stack.enter_context(start(self.log(name)))
            print(f"{name} is up after {time.monotonic() - began:.0f} s", flush=True)
            run(self._urls[name], self.asks(self.models, len(self.models), 8), len(self.models))
        return self._urls[name]


def pairs(
    bench: Bench, one: Callable[[], float], other: Callable[[], float], times: int = 1
) -> tuple[float, list[list[float]]]:
    """Take turns; returns the median ratio of the first's figure to the second's, and all figures."""
    taken = [[one(), other()] for _ in range(times * bench.pairs)]
    return statistics.median(a / b for a, b in taken), taken


def mixed(bench: Bench) -> Iterator[Figure]:
    ours, stock = bench.polytone(), bench.stock()
    ratio, taken = turns_of_mixed(bench, ours, stock)
    what = "base and 4 voices, 32 streams: tokens/s against stock vLLM"
    yield Figure("mixed", what, ratio, 3.0, details={"tokens_per_second": taken})


def turns_of_mixed(bench: Bench, one: str, other: str) -> tuple[float, list[list[float]]]:
    return pairs(
        bench,
        lambda: bench.speed(one, bench.models, STREAMS),
        lambda: bench.speed(other, bench.models, STREAMS),
    )


def prefill(bench: Bench) -> Iterator[Figure]:
    def seconds(url: str) -> float:
        return bench.run(url, bench.asks(bench.versions, 4, 1, LONG), 4).seconds

    ours, stock = bench.polytone(), bench.stock()
    ratio, taken = pairs(bench, lambda: 1 / seconds(ours), lambda: 1 / seconds(stock))
    details = {"seconds": [[1 / a, 1 / b] for a, b in taken]}
    yield Figure("prefill", "4 prompts of 500 tokens, 4 voices: time against stock vLLM", ratio, 5.0, details=details)


def tax(bench: Bench) -> Iterator[Figure]:
    ours = bench.polytone()
    for streams in (1, 8, STREAMS):

        def speed(model: str, streams: int = streams) -> float:
            return bench.speed(ours, [model], streams)

        ratio, taken = pairs(bench, lambda: speed(bench.versions[0]), lambda: speed(BASE), times=2)
        what = f"a voice against the base, {streams} streams: tokens/s"
        yield Figure(f"tax-{streams}", what, ratio, 0.9, details={"tokens_per_second": taken})


def api(bench: Bench) -> Iterator[Figure]:
    ours, bare = bench.polytone(), bench.bare()

    ratio, taken = turns_of_mixed(bench, ours, bare)
    what = "Polytone's API against bare vLLM's, same engine: tokens/s"
    yield Figure("api", what, ratio, 0.97, details={"tokens_per_second": taken})
    first: dict[str, list[float]] = {"polytone": [], "bare": []}
    for _ in range(30):
        for name, url in (("polytone", ours), ("bare", bare)):
            first[name].append(bench.run(url, bench.asks(bench.versions[:1], 1, 2), 1).first_token(0.5))
    medians = {name: statistics.median(values) * 1000 for name, values in first.items()}
    added = medians["polytone"] - medians["bare"]
    yield Figure("api-first", "added median time to first token, ms", added, 5.0, at_most=True, details=medians)


def many(bench: Bench) -> Iterator[Figure]:
    """Pinned versions, so that all of them can be named."""
    home = Home(bench.home.root / "many")
    home.adapters.mkdir(parents=True, exist_ok=True)
    link(bench.home.bases, home.bases)
    link(bench.home.adapter_folder(bench.versions[0]).parent, home.adapter_folder(bench.versions[0]).parent)
    versions = clones(home, bench.versions[0], MANY, probes=1)
    registry = Registry(open_database(home.database_url))
    for version in versions:
        registry.publish(version, "bench")
    chosen = random.Random(0)  # noqa: S311 - the same popularity in every run
    zipf = [1 / rank for rank in range(1, MANY + 1)]
    count = 4 * STREAMS
    with polytone_server(home, bench.log("many"), page="false", max_resident_adapters=str(RESIDENT)) as ours:

        def answer(weights: list[float]) -> Result:
            models = chosen.choices(versions, weights, k=count)
            return bench.run(ours, bench.asks(models, count), STREAMS, stagger=0.1)

        # A server that has run for a while has proven all its voices; the first proof is the price of publishing one,
        # and one probe keeps it short here. What wakes a voice later is the same with one probe as with many.
        bench.run(ours, bench.asks(versions, MANY, 1), STREAMS)
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

        result = bench.run(ours, bench.asks(bench.models, 8, 120), 8, beside=publish)
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
    questions = sorted({question(row) for row in rows})
    asks = [
        Ask(bench.models[(i + again) % len(bench.models)], [{"role": "user", "content": text}], 16, exact=False)
        for again in range(2)
        for i, text in enumerate(questions)
    ][:200]
    texts = [
        {
            (answer.ask.model, answer.ask.messages[0]["content"]): answer.text
            for answer in bench.run(url, asks, 16).answers
        }
        for url in (ours, stock)
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

    def seconds(url: str) -> float:
        began = time.perf_counter()
        for turn in range(3):
            asks = [
                Ask(bench.versions[i % 4], history, 24)
                for i, row in enumerate(several)
                if (history := until_turn(row, turn)) is not None
            ]
            bench.run(url, asks, 8)
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
            for ask in bench.asks([""], 8)
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=ANSWER, min_new_tokens=ANSWER, do_sample=False)
        return 8 * ANSWER / (time.perf_counter() - began)

    ours = bench.polytone()
    generate()

    ratio, taken = pairs(bench, lambda: bench.speed(ours, bench.versions[:1], 8), generate)
    what = "one voice, 8 streams: tokens/s against transformers and PEFT"
    yield Figure("peft", what, ratio, details={"tokens_per_second": taken})


def capture(bench: Bench) -> Iterator[Figure]:
    """Rows, signals, embeddings and detectors against a server that records nothing; conversations count at once."""
    recording = {"page": "false", "drift_quiet_seconds": "0"}
    with (
        polytone_server(bench.home, bench.log("recording"), **recording) as ours,
        polytone_server(bench.home, bench.log("not recording"), page="false", traffic="false") as silent,
    ):
        speed = partial(bench.speed, models=bench.models, streams=STREAMS)
        for url in (ours, silent):
            speed(url)
        ratio, taken = pairs(bench, partial(speed, ours), partial(speed, silent), times=3)
    what = "traffic and drift recorded, 32 streams: tokens/s against nothing recorded"
    yield Figure("capture", what, ratio, 0.98, details={"tokens_per_second": taken})


def llama_cpp(bench: Bench) -> Iterator[Figure]:
    """llama.cpp applies one adapter at a time, so that requests for different voices are not batched."""
    folder = bench.llama_folder
    if folder is None:
        print("llama.cpp: left out; name the folder of its built source: --llama FOLDER")
        return
    ours, log = bench.polytone(), bench.log("llama.cpp")
    for row, what, models, streams, bar in (
        ("llama-32", "base and 4 voices, 32 streams", bench.models, STREAMS, 2.0),
        ("llama-8", "base and 4 voices, 8 streams", bench.models, 8, 1.2),
        ("llama-one", "one voice, 32 streams", bench.versions[:1], STREAMS, None),
    ):
        with llama(bench.home, BASE, bench.versions, folder, streams, log) as url:
            theirs = partial(llama_speed, bench, url, models, streams)
            theirs()
            ratio, taken = pairs(bench, partial(bench.speed, ours, models, streams), theirs)
        against = f"{what}: tokens/s against llama.cpp's server, F16"
        yield Figure(row, against, ratio, bar, details={"tokens_per_second": taken})


def llama_speed(bench: Bench, url: str, models: Sequence[str], streams: int) -> float:
    return bench.run(url, for_llama(bench.asks(models, streams), bench.versions), streams).tokens_per_second


ROWS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "mixed": mixed,
    "prefill": prefill,
    "same": same,
    "turns": turns,
    "tax": tax,
    "load": load,
    "api": api,
    "capture": capture,
    "many": many,
    "peft": peft,
    "llama": llama_cpp,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"rows to run, all by default: {', '.join(ROWS)}")
    parser.add_argument("--pairs", type=int, default=2, help="how often the two sides take turns")
    parser.add_argument("--conversations", type=Path, help="JSONL of messages for `turns`, in place of the examples")
    parser.add_argument("--llama", type=Path, metavar="FOLDER", help="built source of llama.cpp, for the row `llama`")
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
        bench = Bench(home, versions, stack, options.pairs, options.llama)
        for name in options.rows or ROWS:
            row = ROWS[name](bench) if name != "turns" else turns(bench, options.conversations)
            for figure in row:
                figures.append(figure)
                print(figure, flush=True)
        share = bench.own_cpu_seconds / max(bench.ran_seconds, 1e-9)
    print(f"the load generator took {100 * share:.1f} % of a core while requests ran")
    write(home.root, figures, time.monotonic() - began, share)
    print(f"{home.root / 'speed.json'} and .png, {time.monotonic() - began:.0f} s")
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
