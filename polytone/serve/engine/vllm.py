"""The vLLM engine: AsyncLLM with LoRA. The only file that imports vLLM's server objects.

vLLM's OpenAI serving code applies templates, tools, JSON schemas and log-probabilities. Its HTTP app is never mounted,
because it brings routes and exception handlers of its own.
"""

import asyncio
import contextlib
import gc
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import psutil
from prometheus_client import REGISTRY, generate_latest
from pydantic import ValidationError
from starlette.datastructures import State

from polytone.contract.models import describe_problems

from .base import Body, EngineError
from .cpu import plugin as cpu_lora
from .processes import end_children

# For GNU OpenMP: a thread that waits for the others gives its core away early instead of keeping it busy.
# For glibc: keep freed memory. Every step needs the same few buffers, and returned memory comes back page by page.
CPU_PROCESS = {
    "GOMP_SPINCOUNT": "3000",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
SPARE_ADAPTERS = 4
ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's `MaxLoRARanks`
IN_THE_CORE = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
DEAD = "The engine is not running. Try again shortly."


@dataclass(frozen=True)
class VllmOptions:
    """The engine's options; lengths in tokens. `base` is the folder of the prepared base."""

    base: Path
    base_id: str
    max_context: int
    max_streams: int
    max_lora_rank: int
    max_batch_adapters: int
    max_resident_adapters: int
    kv_cache_gib: int
    gpu_memory_share: float
    tool_parser: str | None = None
    cpu_lora: bool = True
    cpu_threads: int | None = None


class VllmEngine:
    """Implements `Engine`. The engine runs in a process of its own."""

    def __init__(self, options: VllmOptions) -> None:
        self._options = options
        self._gpu = False
        self._loads_in_order = False
        self._client: Any = None
        self._serving: Any = None
        self._starting: asyncio.Future[Any] | None = None
        self._ids = count(1)
        self._refused = Counter[str]()
        self._tokens = 0

    @property
    def dtype(self) -> str:
        return "bfloat16" if self._gpu else "float32"

    @property
    def loads_in_order(self) -> bool:
        return self._loads_in_order

    async def start(self) -> None:
        self._gpu = await asyncio.to_thread(has_gpu)
        os.environ.update(engine_environment(self._options, self._gpu))
        self._starting = asyncio.ensure_future(
            asyncio.to_thread(build_client, engine_arguments(self._options, self._gpu), self._count)
        )
        try:
            self._client, arguments = await asyncio.shield(self._starting)
            import vllm

            # With the plugin a load that fails within a step does not end the engine.
            self._loads_in_order = not self._gpu and self._options.cpu_lora and cpu_lora.fits(vllm.__version__)
            serving = State()
            from vllm.entrypoints.launchers.api_server.app_state import init_app_state

            tasks = await self._client.get_supported_tasks()
            await init_app_state(self._client, serving, arguments, tasks)
            self._serving = serving
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise EngineError(
                f"The engine did not start: {start_problem(error)}", code="engine_failed", status=503
            ) from error

    async def stop(self) -> None:
        self._serving = None
        if self._starting is not None and not self._starting.done():
            end_children()  # its start-up waits for them and fails at once
            with contextlib.suppress(BaseException):
                self._client, _ = await self._starting
        self._starting = None  # its result would keep the old client alive
        if self._client is not None:
            with contextlib.suppress(Exception):
                await asyncio.to_thread(self._client.shutdown, timeout=0)
            # Its __del__ calls this once more, at the interpreter's end, where vLLM's modules are gone.
            self._client.shutdown = lambda **_: None
            self._client = None
            gc.collect()  # it sits in cycles, and the next one needs its memory
        await asyncio.to_thread(end_children)

    def healthy(self) -> bool:
        return self._serving is not None and not self._client.errored

    async def load(self, version: str, folder: Path) -> None:
        from vllm.lora.request import LoRARequest

        self._require_healthy()
        # Requests that were worked on before a load failed are in the prefix cache under its name and path. After a
        # failure the path is written in another way, for another key, and still names the same folder.
        path = f"{folder}{'/.' * self._refused[version]}"
        request = LoRARequest(lora_name=version, lora_int_id=next(self._ids), lora_path=path)
        lora_requests = self._serving.openai_serving_models.lora_requests
        lora_requests[version] = request
        try:
            if not await self._client.add_lora(request):
                raise RuntimeError("it was not added")
        except Exception as error:
            self._refused[version] += 1
            lora_requests.pop(version, None)
            with contextlib.suppress(
                Exception
            ):  # the empty adapter that took its place for requests sent with the load
                await self._client.remove_lora(request.lora_int_id)
            raise EngineError(
                f"The engine refused the adapter: {error}",
                code="adapter_refused",
                status=self._failed_status(422),
            ) from error

    async def unload(self, version: str) -> None:
        self._require_healthy()
        request = self._serving.openai_serving_models.lora_requests.pop(version, None)
        if request is not None:
            await self._client.remove_lora(request.lora_int_id)

    async def chat(self, request: Body, version: str | None) -> Body | AsyncIterator[str]:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        self._require_healthy()
        call = self._serving.openai_serving_chat.create_chat_completion
        return await self._answer(ChatCompletionRequest, call, request, version)

    async def complete(self, request: Body, version: str | None) -> Body | AsyncIterator[str]:
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest

        self._require_healthy()
        call = self._serving.openai_serving_completion.create_completion
        return await self._answer(CompletionRequest, call, request, version)

    def progress(self) -> int:
        return self._tokens

    def metrics(self) -> bytes:
        return generate_latest(REGISTRY)

    def _count(self, tokens: int) -> None:
        self._tokens += tokens

    async def _answer(
        self, kind: Any, call: Callable[[Any], Awaitable[Any]], request: Body, version: str | None
    ) -> Body | AsyncIterator[str]:
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse

        try:
            parsed = kind.model_validate({**request, "model": version or self._options.base_id})
        except ValidationError as error:
            problems = describe_problems(error.errors()[:5])
            first = error.errors()[0]["loc"]
            raise EngineError(
                problems, code="invalid_request", status=400, param=str(first[0]) if first else None
            ) from None
        try:
            result = await call(parsed)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise self._translate(error) from error
        if isinstance(result, ErrorResponse):
            raise as_engine_error(result)
        if hasattr(result, "model_dump"):
            return dict(result.model_dump(mode="json"))
        return self._stream(result)

    async def _stream(self, events: AsyncIterator[str]) -> AsyncIterator[str]:
        try:
            async for event in events:
                yield event
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise self._translate(error) from error

    def _require_healthy(self) -> None:
        if not self.healthy():
            raise EngineError(DEAD, code="engine_unavailable", status=503)

    def _failed_status(self, otherwise: int) -> int:
        return otherwise if self.healthy() else 503

    def _translate(self, error: Exception) -> EngineError:
        from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

        if not self.healthy():
            return EngineError(DEAD, code="engine_unavailable", status=503)
        return as_engine_error(create_error_response(error))


def as_engine_error(response: Any) -> EngineError:
    """Convert vLLM's ErrorResponse."""
    error = response.error
    code = "invalid_request" if 400 <= error.code < 500 else "engine_error"
    return EngineError(error.message, code=code, status=error.code, param=error.param)


def start_problem(error: Exception) -> str:
    """Why vLLM did not start. When its own process failed, the error only refers to what that printed."""
    if "See root cause above" in str(error):
        return "its process failed while it started; the engine's log says why"
    return str(error) or type(error).__name__


def has_gpu() -> bool:
    import torch  # takes seconds: the HTTP side must not wait for it

    return bool(torch.cuda.is_available())


def engine_environment(options: VllmOptions, gpu: bool) -> dict[str, str]:
    """Settings that vLLM reads from the environment alone. Its child processes inherit them.

    Where the environment sets log level, threads or memory already, they stay as they are.
    """
    fixed = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    defaults = {"VLLM_LOGGING_LEVEL": "WARNING"}
    if not gpu:
        fixed["VLLM_CPU_KVCACHE_SPACE"] = str(options.kv_cache_gib)
        fixed[cpu_lora.SWITCH] = "1" if options.cpu_lora else "0"
        # With LoRA on a CPU vLLM runs eagerly. The little that it would compile costs 12 s at the first request.
        fixed["TORCH_COMPILE_DISABLE"] = "1"
        # The worker runs in the core's process. In one of its own vLLM gives it one processor less, and both poll.
        defaults |= {"OMP_NUM_THREADS": str(options.cpu_threads or cores()), **CPU_PROCESS}
    return {**{name: os.environ.get(name, value) for name, value in defaults.items()}, **fixed}


def cores() -> int:
    """Physical cores this process may run on."""
    allowed = len(os.sched_getaffinity(0))
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def engine_arguments(options: VllmOptions, gpu: bool) -> list[str]:
    """The command line of `vllm serve`."""
    resident = max(options.max_resident_adapters, options.max_batch_adapters)
    slots = options.max_batch_adapters
    if not gpu and not options.cpu_lora:
        # vLLM's own CPU path answers for the base with the adapter in the last slot. One more slot stays empty.
        resident = slots = resident + 1
    arguments = {
        "--model": options.base / ("source" if gpu else "nf4-dense"),
        "--served-model-name": options.base_id,
        "--dtype": "bfloat16" if gpu else "float32",
        "--max-model-len": options.max_context,
        "--max-num-seqs": options.max_streams,
        "--max-lora-rank": engine_rank(options.max_lora_rank),
        "--max-loras": slots,
        # A few more: while one is evicted and another loaded, vLLM would otherwise evict one of its own choice.
        "--max-cpu-loras": resident + SPARE_ADAPTERS,
        "--generation-config": "vllm",
    }
    if gpu:
        arguments |= {"--quantization": "bitsandbytes", "--gpu-memory-utilization": options.gpu_memory_share}
    else:
        arguments["--distributed-executor-backend"] = IN_THE_CORE
    if options.tool_parser is not None:
        arguments["--tool-call-parser"] = options.tool_parser
    switches = ["--enable-lora", *(["--enable-auto-tool-choice"] if options.tool_parser is not None else [])]
    return [*switches, *(str(part) for pair in arguments.items() for part in pair)]


def engine_rank(rank: int) -> int:
    """The smallest rank that vLLM can be started with and that holds adapters of this rank."""
    return next(accepted for accepted in ENGINE_RANKS if accepted >= rank)


def build_client(arguments: list[str], count_tokens: Callable[[int], None]) -> tuple[Any, Any]:
    """Start the engine's processes and wait until they answer. Blocks for tens of seconds.

    Args:
        count_tokens: is called in every step with the tokens read and written.

    Raises:
        ValueError: vLLM does not accept an option.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.tool_parsers import ToolParserManager
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Progress(StatLoggerBase):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            if iteration_stats is not None:
                count_tokens(iteration_stats.num_generation_tokens + iteration_stats.num_prompt_tokens)

        def log_engine_initialized(self) -> None:
            pass

    class ArgumentParser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:  # argparse would print its usage and exit
            raise ValueError(f"vLLM refused an option: {message}")

    parsed = make_arg_parser(ArgumentParser()).parse_args(arguments)
    tool_parsers = ToolParserManager.list_registered()
    if parsed.tool_call_parser is not None and parsed.tool_call_parser not in tool_parsers:
        raise ValueError(
            f"POLYTONE_TOOL_PARSER: vLLM has no parser {parsed.tool_call_parser!r}. It has {', '.join(tool_parsers)}."
        )
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(parsed), stat_loggers=[Progress])
    return engine, parsed
