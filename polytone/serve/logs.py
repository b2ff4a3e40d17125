"""Log lines for people, or one JSON object a line for programs; both carry the request's id and never its content."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
NOISY = ("alembic", "httpx", "matplotlib", "uvicorn.error", "vllm")
SHOWN_IN_TEXT = ("ms", "version", "key")


class TextLines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: getattr(record, name, None) for name in SHOWN_IN_TEXT}
        request_id = REQUEST_ID.get()
        parts = [super().format(record), *(f"{name}={value}" for name, value in fields.items() if value is not None)]
        return " ".join(parts + ([f"[{request_id}]"] if request_id else []))


class JsonLines(JsonFormatter):
    def __init__(self) -> None:
        super().__init__(
            ("levelname", "name", "message"),
            timestamp="time",
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's second copy of its message
        )

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        line = {**log_data, "level": log_data["level"].lower(), "request_id": REQUEST_ID.get()}
        return {name: value for name, value in line.items() if value is not None}


def set_up_logs(as_json: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextmanager
def prints_in(path: Path) -> Iterator[None]:
    """Write what libraries print, here and in the processes started meanwhile, to a file; log lines stay on stderr."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.StreamHandler)]
    standard = (sys.stdout, sys.stderr)
    saved = [os.dup(stream.fileno()) for stream in standard]
    with path.open("w") as file, os.fdopen(os.dup(saved[1]), "w", buffering=1) as terminal:
        streams = [handler.setStream(terminal) for handler in handlers]
        for stream in standard:
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
        try:
            yield
        finally:
            for stream, descriptor in zip(standard, saved, strict=True):
                stream.flush()
                os.dup2(descriptor, stream.fileno())
                os.close(descriptor)
            for handler, stream in zip(handlers, streams, strict=True):
                handler.setStream(stream or sys.stderr)
