"""The seam between the server and whatever generates text. The real one is vllm_engine.py; a double lives in tests/."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

from polytone.contract.errors import PolytoneError

Body = dict[str, Any]


class Engine(Protocol):
    """Speaks OpenAI JSON. `version` is an adapter version id, or None for the base."""

    @property
    def dtype(self) -> str:
        """The type it computes in, as torch names it."""

    @property
    def loads_in_order(self) -> bool:
        """Whether what is asked of a version while it is loaded is worked on after that, and ends if that fails."""

    async def start(self) -> None:
        """Come up; may be called again after `stop`. Raises EngineError if it cannot."""

    async def stop(self) -> None:
        """End every process it started. Never raises."""

    def healthy(self) -> bool:
        """Whether it can answer now."""

    async def load(self, version: str, folder: Path) -> None:
        """Make `version` answerable. Raises EngineError with the reason otherwise."""

    async def unload(self, version: str) -> None:
        """Forget `version` and free its memory."""

    async def chat(self, request: Body, version: str | None) -> Body | AsyncIterator[str]:
        """Answer a chat completion: a response, or server-sent events if `stream` is set. Raises EngineError."""

    async def complete(self, request: Body, version: str | None) -> Body | AsyncIterator[str]:
        """Answer a text completion, likewise."""

    def progress(self) -> int:
        """Tokens read and written since it was built; a number that stands still while it is busy means it hangs."""

    def metrics(self) -> bytes:
        """Its own metrics in Prometheus' text format."""


class EngineError(PolytoneError):
    """The engine refused a request or failed at it; `status` is the HTTP status to answer with."""

    def __init__(self, message: str, *, code: str, status: int, param: str | None = None) -> None:
        super().__init__(message, code=code, param=param)
        self.status = status
