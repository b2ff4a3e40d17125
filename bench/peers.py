"""The servers that are compared, started one beside the other on free ports; an idle one takes no processor time."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from polytone.contract.base import base_folder
from polytone.contract.home import Home
from polytone.serve.cpu_lora import SWITCH
from polytone.serve.vllm_engine import CPU_PROCESS, IN_THE_CORE, VllmOptions, cores, engine_arguments, has_gpu

from .running import START_SECONDS, free_port

STREAMS = 32
VLLM = "vllm.entrypoints.launchers.api_server.entry"


@dataclass(frozen=True)
class Peer:
    """A running server that speaks OpenAI's chat completions."""

    name: str
    url: str
    pid: int
    seconds_to_start: float


@contextlib.contextmanager
def polytone(home: Home, name: str = "polytone", **settings: str) -> Iterator[Peer]:
    """Polytone on `home`; `settings` are environment variables without their prefix."""
    port = free_port()
    given = {f"POLYTONE_{key.upper()}": value for key, value in settings.items()}
    environment = {"POLYTONE_HOME": str(home.root), "POLYTONE_PORT": str(port), "POLYTONE_PAGE": "false", **given}
    command = [sys.executable, "-m", "polytone", "serve"]
    with started(name, command, environment, port, "/readyz", home.root / "logs") as peer:
        yield peer


@contextlib.contextmanager
def vllm(home: Home, base: str, voices: list[str], plugin: bool) -> Iterator[Peer]:
    """vLLM's own API server with the engine settings Polytone has, with Polytone's adapter kernels or without."""
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
    adapters = [f"{voice}={home.adapter_folder(voice)}" for voice in voices]
    ours = engine_arguments(options, gpu)
    arguments = (
        ours if plugin else [word for word in ours if word not in ("--distributed-executor-backend", IN_THE_CORE)]
    )
    environment = {
        SWITCH: "1" if plugin else "0",
        **({"OMP_NUM_THREADS": str(cores()), **CPU_PROCESS} if plugin else {}),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TORCH_COMPILE_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    name = "vllm with the plugin" if plugin else "vllm"
    command = [sys.executable, "-m", VLLM, *arguments, "--port", str(port), "--host", "127.0.0.1"]
    command += ["--disable-uvicorn-access-log", "--lora-modules", *adapters]
    with started(name, command, environment, port, "/health", home.root / "logs") as peer:
        yield peer


@contextlib.contextmanager
def started(
    name: str, command: list[str], environment: dict[str, str], port: int, health: str, logs: Path
) -> Iterator[Peer]:
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{name.replace(' ', '-')}.log"
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=output)
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}{health}", process, log)
        yield Peer(name, f"http://127.0.0.1:{port}", process.pid, time.monotonic() - began)
    finally:
        end(process)


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"The server did not become ready; see {log}.")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop; what it started and left behind is ended too."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    if process.poll() is None:
        process.kill()
        process.wait()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
