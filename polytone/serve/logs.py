"""Log lines for people, or one JSON object a line for programs; both carry the request's id and never its content."""

import logging
from contextvars import ContextVar
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
NOISY = ("httpx", "alembic", "matplotlib")
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
