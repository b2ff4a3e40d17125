"""The one double: an engine that answers with its version's name. It stands at the engine's seam and never ships."""

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

from polytone.serve.engine.base import Body, EngineError

WORDS = 5


class FakeEngine:
    """Implements polytone.serve.engine.Engine. `step_seconds` is the time a streamed word takes."""

    dtype = "float32"

    def __init__(self, base_id: str = "tiny", step_seconds: float = 0.0) -> None:
        self.base_id = base_id
        self.step_seconds = step_seconds
        self.up = False
        self.loaded: dict[str, Path] = {}
        self.starts = 0
        self.running = 0
        self.requests: list[Body] = []
        self.tokens = 0
        self.frozen = asyncio.Event()
        self.deaf = False  # one that hangs stays so for those who wait for it
        self.loads = 0
        self.load_seconds = 0.0
        self.loads_in_order = True
        self.refuses: str | None = None  # at the end of a load
        self.verify_seconds = 0.0
        self.verifying: list[str] = []
        self.ids = count(1)
        self.wrong = False  # loads something else than it should
        self.says: list[str] | dict[str, list[str]] | None = None  # in place of its version's name, piece by piece

    async def start(self) -> None:
        self.starts += 1
        if not self.deaf:
            self.frozen.clear()
        self.loaded.clear()
        self.up = True

    async def stop(self) -> None:
        self.up = False

    def healthy(self) -> bool:
        return self.up

    async def load(self, version: str, folder: Path) -> None:
        if not (folder / "adapter_model.safetensors").is_file():
            raise EngineError(f"{folder} is no adapter", code="adapter_refused", status=422)
        self.loads += 1
        if self.loads_in_order:
            self.loaded[version] = folder
        await asyncio.sleep(self.load_seconds)
        if self.refuses is not None:
            self.loaded.pop(version, None)
            raise EngineError(self.refuses, code="adapter_refused", status=422)
        self.loaded[version] = folder

    async def unload(self, version: str) -> None:
        self.loaded.pop(version, None)

    async def chat(self, request: Body, version: str | None) -> Body | AsyncIterator[str]:
        self._check(request, version, "messages")
        name = version or self.base_id
        if request.get("stream"):
            return self._stream(name, request)
        await asyncio.sleep(self.step_seconds)
        while self.frozen.is_set():
            await asyncio.sleep(0.01)
        message = {"role": "assistant", "content": self._text(name)}
        return self._response(name, {"index": 0, "message": message, "finish_reason": "stop"})

    async def complete(self, request: Body, version: str | None) -> Body | AsyncIterator[str]:
        self._check(request, version, "prompt")
        name = version or self.base_id
        choice: dict[str, Any] = {"index": 0, "text": self._text(name), "finish_reason": "stop"}
        if request.get("return_token_ids"):  # the fingerprint that tests/support/adapters.py writes
            self.verifying.append(name)
            await asyncio.sleep(self.verify_seconds)
            self.verifying.remove(name)
            choice["token_ids"] = [7, 8] if self.wrong else [3, 4][: request["max_tokens"]]
            choice["logprobs"] = {"token_logprobs": [-1.0] * 2, "top_logprobs": [{"token_id:3": -1.0}] * 2}
        return self._response(name, choice)

    def progress(self) -> int:
        return self.tokens

    def metrics(self) -> bytes:
        return b""

    def _check(self, request: Body, version: str | None, field: str) -> None:
        self.requests.append(request)
        if not self.up:
            raise EngineError("down", code="engine_unavailable", status=503)
        if version is not None and version not in self.loaded:
            raise EngineError(f"{version} is not loaded", code="invalid_request", status=404)
        if not request.get(field) or float(request.get("temperature") or 0) < 0:
            raise EngineError(f"{field} or temperature is wrong", code="invalid_request", status=400, param=field)

    def _text(self, name: str) -> str:
        return "".join(self._pieces(name)).strip()

    def _pieces(self, name: str) -> list[str]:
        says = self.says.get(name) if isinstance(self.says, dict) else self.says
        return says or [f"{name} "] * WORDS

    def _response(self, name: str, choice: Body) -> Body:
        usage = {"prompt_tokens": 1, "completion_tokens": WORDS, "total_tokens": 1 + WORDS}
        return {
            "id": f"chatcmpl-{next(self.ids)}",
            "object": "chat.completion",
            "created": 0,
            "model": name,
            "choices": [choice],
            "usage": usage,
        }

    async def _stream(self, name: str, request: Body) -> AsyncIterator[str]:
        self.running += 1
        life, number = self.starts, next(self.ids)
        try:
            for piece in self._pieces(name):
                await asyncio.sleep(self.step_seconds)
                while self.frozen.is_set():  # an engine that hangs
                    await asyncio.sleep(0.01)
                self.tokens += 1
                if not self.up or self.starts != life:
                    raise EngineError("died", code="engine_unavailable", status=503)
                delta = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
                chunk: Body = {
                    "id": f"chatcmpl-{number}",
                    "object": "chat.completion.chunk",
                    "created": 0,
                    "model": name,
                    "choices": [delta],
                }
                yield f"data: {json.dumps(chunk)}\n\n"
            if (request.get("stream_options") or {}).get("include_usage"):
                last = {**chunk, "choices": [], "usage": self._response(name, {})["usage"]}
                yield f"data: {json.dumps(last, separators=(',', ':'))}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.running -= 1
