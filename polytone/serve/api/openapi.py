"""What the routes say of themselves in OpenAPI where FastAPI cannot see it: errors, passed-through bodies, streams.

The description is not served; tests fuzz the server by it.
"""

from typing import Any

from pydantic import BaseModel


class ErrorContent(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str
    reasons: list[dict[str, str]] | None = None


class ErrorEnvelope(BaseModel):
    """OpenAI's envelope, on every error."""

    error: ErrorContent


ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorEnvelope, "description": "An error"},
    422: {"model": ErrorEnvelope, "description": "A check failed; `reasons` has every reason"},
}

COMMON: dict[str, Any] = {
    "model": {"type": "string"},
    "max_tokens": {"type": "integer", "minimum": 1, "maximum": 16},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "n": {"type": "integer", "minimum": 1, "maximum": 2},
    "seed": {"type": "integer"},
    "stop": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 4}]},
    "stream": {"type": "boolean"},
    "user": {"type": "string"},
}
MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": {"type": "string"}},
}
ANSWER = {
    "responses": {
        "200": {
            "description": "An answer, or server-sent events with `stream`",
            "content": {
                "application/json": {"schema": {"type": "object", "required": ["id", "model", "choices"]}},
                "text/event-stream": {"schema": {"type": "string"}},
            },
        }
    }
}


def request_body(required: list[str], **more: Any) -> dict[str, Any]:
    schema = {"type": "object", "required": ["model", *required], "properties": {**COMMON, **more}}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}, **ANSWER}


CHAT = request_body(["messages"], messages={"type": "array", "minItems": 1, "maxItems": 8, "items": MESSAGE})
COMPLETION = request_body(["prompt"], prompt={"type": "string"})
UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {"application/gzip": {"schema": {"type": "string", "format": "binary"}}},
    }
}
METRICS = {
    "responses": {
        "200": {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
    }
}
