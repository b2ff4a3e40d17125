"""The engine protocol: what the server needs of whatever generates text. `vllm.py` implements it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

from polytone.contract.errors import PolytoneError

Body = dict[str, Any]


class Engine(Protocol):
    """Requests and responses are OpenAI's JSON. `version` is the id of a loaded version, or None for the base."""

    @property
    def dtype(self) -> str:
        """The type of its numbers, as torch names it."""

    @property
    def loads_in_order(self) -> bool:
        """Whether requests for a version may be sent while it is being loaded. They wait for the load, and fail if it
        fails.
        """

    async def start(self) -> None:
        """Start, for the first time or after `stop`. Raises EngineError with the reason if it cannot."""

    async def stop(self) -> None:
        """End every process it started. Never raises."""

    def healthy(self) -> bool:
        """Whether it can answer now."""

    async def load(self, version: str, folder: Path) -> None:
        """Load a version's folder into memory. Raises EngineError with the reason if it cannot."""

    async def unload(self, version: str) -> None:
        """Free the memory of a version."""

    async def chat(self, request: Body, version: str | None) -> Body | AsyncIterator[str]:
        """Answer a chat completion: a response, or server-sent events if `stream` is set. Raises EngineError."""

    async def complete(self, request: Body, version: str | None) -> Body | AsyncIterator[str]:
        """Answer a text completion in the same way."""

    def progress(self) -> int:
        """Tokens read and written since the object was made. If it is busy and they stand still, it hangs."""

    def metrics(self) -> bytes:
        """Its own metrics in Prometheus' text format."""


class EngineError(PolytoneError):
    """The engine refused a request or failed; `status` is the HTTP status to answer with."""

    def __init__(self, message: str, *, code: str, status: int, param: str | None = None) -> None:
        super().__init__(message, code=code, param=param)
        self.status = status
