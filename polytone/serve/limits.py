"""Limits of the server and of one request."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RequestLimits:
    """The most a request may ask for. Without `tools` the model's choice of a tool cannot be read from its answer."""

    messages: int
    output_tokens: int
    choices: int
    tools: bool = True


@dataclass(frozen=True)
class ServerLimits:
    """What this server takes and how long it waits; bytes and seconds."""

    request: RequestLimits
    body_bytes: int
    upload_bytes: int
    answer_seconds: float
    hang_seconds: float
    start_seconds: float
