"""vLLM's own API server, started beside Polytone: with Polytone's adapter kernels, or as it comes."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from polytone.contract.base import base_folder
from polytone.contract.home import Home
from polytone.serve.engine.vllm import (
    CPU_PROCESS,
    IN_THE_CORE,
    VllmOptions,
    engine_arguments,
    engine_environment,
    has_gpu,
)

from .running import free_port, running

STREAMS = 32
VLLM = "vllm.entrypoints.launchers.api_server.entry"


@contextlib.contextmanager
def vllm(home: Home, base: str, voices: list[str], plugin: bool, log: Path) -> Iterator[str]:
    """Yields its address. With the plugin its engine is set up as Polytone's; without, in vLLM's own way."""
    port, gpu = free_port(), has_gpu()
    options = VllmOptions(
        base=base_folder(home, base),
        base_id=base,
        max_context=2048,
        max_streams=STREAMS,
        max_lora_rank=16,
        # As few slots as vLLM's own path needs to be right: it takes more time with every slot.
        max_batch_adapters=STREAMS if plugin else len(voices),
        max_resident_adapters=64 if plugin else len(voices),
        cpu_lora=plugin,
        kv_cache_gib=1,
        gpu_memory_share=0.4,
    )
    arguments, environment = engine_arguments(options, gpu), engine_environment(options, gpu)
    if not plugin:
        arguments = [word for word in arguments if word not in ("--distributed-executor-backend", IN_THE_CORE)]
        environment = {k: v for k, v in environment.items() if k not in {"OMP_NUM_THREADS", *CPU_PROCESS}}
    command = [sys.executable, "-m", VLLM, *arguments, "--port", str(port), "--host", "127.0.0.1"]
    command += ["--disable-uvicorn-access-log", "--lora-modules"]
    command += [f"{voice}={home.adapter_folder(voice)}" for voice in voices]
    with running(command, environment, port, log) as process:
        process.until_ready("/health")
        yield process.url
