"""JSON lines as a response."""

from typing import Any

JSON_LINES = "application/x-ndjson"
JSON_LINES_RESPONSE: dict[int | str, dict[str, Any]] = {200: {"content": {JSON_LINES: {"schema": {"type": "string"}}}}}
