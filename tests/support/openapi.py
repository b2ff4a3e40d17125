"""The server's OpenAPI description, with what FastAPI cannot see: errors, passed-through bodies, streams.

The server does not serve it; tests send requests by it.
"""

from typing import Any

from fastapi import FastAPI

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
MESSAGES = {"type": "array", "minItems": 1, "maxItems": 8, "items": MESSAGE}
ANSWER = {
    "description": "An answer, or server-sent events with `stream`",
    "content": {
        "application/json": {"schema": {"type": "object", "required": ["id", "model", "choices"]}},
        "text/event-stream": {"schema": {"type": "string"}},
    },
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
                "reasons": {"type": "array", "items": {"type": "object", "additionalProperties": {"type": "string"}}},
            },
        }
    },
}


def described(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description with every request body, and OpenAI's envelope for every error."""
    document = app.openapi()
    for operations in document["paths"].values():
        for operation in operations.values():
            for status in ("default", "422"):
                operation["responses"][status] = {
                    "description": "An error",
                    "content": {"application/json": {"schema": ERROR}},
                }
    chat = document["paths"]["/v1/chat/completions"]["post"]
    chat["requestBody"] = body(required=["messages"], messages=MESSAGES)
    completion = document["paths"]["/v1/completions"]["post"]
    completion["requestBody"] = body(required=["prompt"], prompt={"type": "string"})
    chat["responses"]["200"] = completion["responses"]["200"] = ANSWER
    archive = {"application/gzip": {"schema": {"type": "string", "format": "binary"}}}
    document["paths"]["/admin/adapters/{name}/versions"]["post"]["requestBody"] = {"required": True, "content": archive}
    return document


def body(required: list[str], **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "required": ["model", *required], "properties": {**COMMON, **properties}}
    return {"required": True, "content": {"application/json": {"schema": schema}}}
