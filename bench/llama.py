"""llama.cpp's server with the same base and voices in F16, from a llama.cpp source folder that was built.

    cmake -B build -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF && cmake --build build --target llama-server -j 2

The folder's own converters make its files, once; they run with the Python packages of this project.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from polytone.contract.base import base_folder
from polytone.contract.home import Home

from .load import Ask
from .running import free_port, running

SERVER = Path("build/bin/llama-server")
CONTEXT = 512


@contextlib.contextmanager
def llama(home: Home, base: str, voices: Sequence[str], folder: Path, streams: int, log: Path) -> Iterator[str]:
    """Yields its address. A stream has `CONTEXT` tokens of attention cache, more than any request here takes."""
    model = convert(home, base, voices, folder)
    port = free_port()
    command = [str(folder / SERVER), "--host", "127.0.0.1", "--port", str(port), "--threads", str(os.cpu_count())]
    command += ["--model", str(model), "--lora-init-without-apply"]
    command += ["--lora", ",".join(str(converted(home, voice)) for voice in voices)]
    command += ["--parallel", str(streams), "--ctx-size", str(streams * CONTEXT)]
    with running(command, {}, port, log) as process:
        process.until_ready("/health")
        yield process.url


def convert(home: Home, base: str, voices: Sequence[str], folder: Path) -> Path:
    """The base's and the voices' files for llama.cpp, made where they are missing; returns the base's."""
    values = base_folder(home, base) / "nf4-dense"  # what Polytone serves on a CPU
    model = converted(home, base)
    model.parent.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        run_converter(folder, "convert_hf_to_gguf.py", "--outfile", str(model), str(values))
    for voice in voices:
        if not converted(home, voice).exists():
            arguments = ["--base", str(values), "--outfile", str(converted(home, voice))]
            run_converter(folder, "convert_lora_to_gguf.py", *arguments, str(home.adapter_folder(voice)))
    return model


def converted(home: Home, name: str) -> Path:
    return home.root / "llama" / f"{name}.gguf"


def run_converter(folder: Path, script: str, *arguments: str) -> None:
    command = [sys.executable, str(folder / script), "--outtype", "f16", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder / "gguf-py")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def for_llama(asks: Sequence[Ask], voices: Sequence[str]) -> list[Ask]:
    """The same requests: a voice is named by its number there, and one that is not named is not applied."""
    return [
        replace(ask, more={"lora": [{"id": i, "scale": float(ask.model == voice)} for i, voice in enumerate(voices)]})
        for ask in asks
    ]
