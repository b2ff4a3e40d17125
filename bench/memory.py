"""The memory estimate against what training really takes: SmolLM2-135M by QLoRA on a CPU.

Every setting is trained for a few steps in a process of its own by the real code (the pieces of train/run.py). Two
figures are compared with the estimate, each within 15 %: the peak of the whole process, and the peak beyond what the
process held just before the model was loaded. Exit code 1 if one is off. The peak with the voice measured on eight rows
after training, as a run does, is told beside them.

The peak is VmHWM, the kernel's high-water mark of resident memory, which is reset before the model is loaded.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polytone.contract.base import base_folder
from polytone.contract.home import Home
from polytone.train.memory.estimate import PROCESS, Estimate, estimate
from polytone.train.memory.plan import EVALUATION_ROWS, default_plan
from polytone.train.memory.shape import read_shape

BASE = "smollm2-135m-instruct"
SETTINGS = ("1x512", "4x128", "8x256", "4x512", "2x1024")
TOLERANCE = 0.15
IGNORED = -100
LIBRARIES, EVALUATED = "libraries", "with 8 rows measured"  # told, not judged
RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs


@dataclass(frozen=True)
class Measured:
    """Bytes: resident before the model was loaded, and the highest before and after that."""

    before: int
    peak_before: int
    peak_training: int
    peak_run: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="a home with the base; without it one is prepared for the while")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="rows x tokens (default: %(default)s)")
    parser.add_argument("--supervised", type=float, default=0.5, help="share of the tokens that are learned from")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(asdict(measure(options))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        options.home = options.home or prepared(Path(folder))
        return compare(options)


def prepared(folder: Path) -> Path:
    command = [sys.executable, "-m", "polytone", "base", "prepare", BASE, "--home", str(folder)]
    subprocess.run(command, check=True)
    return folder


def compare(options: argparse.Namespace) -> int:
    """Train every setting and print estimate, measurement and their ratio; 1 if any is off by more than 15 %."""
    print(f"{'rows x tokens':14} {'':22} {'estimate':>9} {'measured':>9} {'ratio':>6}")
    off = 0
    for setting in options.settings:
        found = in_a_process(options, setting)
        expected, measured = (expected_of(options, setting, rows) for rows in (0, EVALUATION_ROWS))
        own = next(item.bytes for item in expected.items if item.name == PROCESS)
        for what, mine, real in (
            ("whole process", expected.total_bytes, max(found.peak_before, found.peak_training)),
            ("beyond the libraries", expected.total_bytes - own, found.peak_training - found.before),
            (LIBRARIES, own, found.before),
            (EVALUATED, measured.total_bytes, found.peak_run),
        ):
            ratio = mine / real
            wrong = what not in (LIBRARIES, EVALUATED) and abs(ratio - 1) > TOLERANCE
            off += wrong
            print(f"{setting:14} {what:22} {mine / 1e6:6.0f} MB {real / 1e6:6.0f} MB {ratio:6.2f}{' OFF' * wrong}")
    return 1 if off else 0


def in_a_process(options: argparse.Namespace, setting: str) -> Measured:
    command = [sys.executable, "-m", "bench.memory", "--child", setting, "--home", str(options.home)]
    command += ["--steps", str(options.steps), "--supervised", str(options.supervised)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def expected_of(options: argparse.Namespace, setting: str, held_out: int) -> Estimate:
    batch, length = sizes(setting)
    shape = read_shape(base_folder(Home(options.home), BASE) / "source", BASE)
    chosen = {"supervised": options.supervised, "evaluation_rows": held_out}
    return estimate(shape, default_plan(shape, "qlora", "cpu", batch, length, **chosen))


def sizes(setting: str) -> tuple[int, int]:
    batch, _, length = setting.partition("x")
    return int(batch), int(length)


def measure(options: argparse.Namespace) -> Measured:
    """Train one setting here, in the order of `polytone.train.run.run`, and measure the voice after it."""
    from polytone.train.libraries import quiet_libraries

    quiet_libraries()
    from rich.console import Console
    from transformers import AutoTokenizer

    from polytone.progress import Progress
    from polytone.train.artifact.lora import attach_adapter
    from polytone.train.artifact.scoring import evaluate
    from polytone.train.base_model import compute_dtype, load_nf4
    from polytone.train.job import METHODS
    from polytone.train.methods.common import Prepared, RunCallbacks
    from polytone.train.methods.sft import as_dataset
    from polytone.train.recipe import Recipe
    from polytone.train.runs.metrics import Recorder
    from polytone.train.tokenization import Row

    batch, length = sizes(options.child)
    source = base_folder(Home(options.home), BASE) / "source"
    tokenizer = AutoTokenizer.from_pretrained(source)
    rows = [Row(*row) for row in some_rows(batch, options.steps, length, options.supervised)]
    held_out = [Row(*row) for row in some_rows(EVALUATION_ROWS, 1, length, options.supervised)]
    recipe = Recipe.model_validate(recipe_of(batch, length, options.steps))
    with tempfile.TemporaryDirectory() as folder:
        progress = Progress(Console(quiet=True))
        callbacks = RunCallbacks(Path(folder), [Recorder(Path(folder) / "metrics.jsonl", progress)])
        prepared: Any = Prepared(as_dataset(rows), None, rows, held_out, [], [], None)  # type: ignore[arg-type]
        before, peak_before = memory("VmRSS"), memory("VmHWM")
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
        model = attach_adapter(load_nf4(source, compute_dtype()), recipe, None)
        METHODS["sft"].trainer(model, tokenizer, prepared, recipe, callbacks).train()
        peak_training = memory("VmHWM")
        evaluate(model, held_out, progress)
    return Measured(before, peak_before, peak_training, memory("VmHWM"))


def some_rows(batch: int, steps: int, length: int, share: float) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels; rows of a batch differ in length, so that they are padded as real ones are."""
    chance = random.Random(0)  # noqa: S311
    rows = []
    for number in range(batch * steps):
        ids = [chance.randrange(100, 40_000) for _ in range(length - number % batch)]
        start = len(ids) - round(share * len(ids))
        rows.append((ids, [IGNORED] * start + ids[start:]))
    return rows


def recipe_of(batch: int, length: int, steps: int) -> dict[str, Any]:
    training = {"batch": batch, "micro_batch": batch, "max_length": length, "max_steps": steps, "epochs": 1}
    return {"name": "memory", "base": BASE, "data": {"train": "rows"}, "training": training}


def memory(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    sys.exit(main())
