"""Fields of a request: those on offer, their limits, and the voice's own defaults.

The engine ignores a field it does not know, and some it knows reach further than a client should (its own request id, a
template to run, tensors). So a field is either offered here or refused by name.
"""

import json
from typing import Any

from polytone.contract.errors import InputError, TooLargeError
from polytone.contract.manifest import Manifest
from polytone.serve.engine.base import Body
from polytone.serve.limits import RequestLimits

# OpenAI's, then vLLM's own. Not `prompt_logprobs`, nor `echo`, which asks for them: see verify.py.
SAMPLING = frozenset(
    {"frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty", "response_format", "seed"}
    | {"stop", "stream", "stream_options", "temperature", "top_p", "user"}
    | {"bad_words", "ignore_eos", "include_stop_str_in_output", "min_p", "min_tokens"}
    | {"repetition_penalty", "return_token_ids", "skip_special_tokens", "stop_token_ids", "structured_outputs", "top_k"}
)
CHAT_FIELDS = SAMPLING | frozenset(
    {"max_completion_tokens", "messages", "metadata", "model", "parallel_tool_calls", "reasoning_effort"}
    | {"tool_choice", "tools", "top_logprobs"}
    | {"add_generation_prompt", "chat_template_kwargs", "continue_final_message"}
)
COMPLETION_FIELDS = SAMPLING | frozenset({"model", "prompt"})
REASONS = {"store": "the server records answers by the content policy of the voice, not by request"}


def parse_body(raw: bytes) -> Body:
    """Raises InputError `invalid_json`."""
    try:
        body = json.loads(raw, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The request's body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise InputError("The request's body must be a JSON object.", code="invalid_json")
    return body


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def check_fields(body: Body, offered: frozenset[str], limits: RequestLimits) -> str:
    """Refuse what is not offered or asks for too much; returns the model's name.

    Raises:
        InputError: `unsupported_field` or `invalid_request`, with the field in `param`.
        TooLargeError: `too_many_messages`.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InputError(
            "model: name the base, a voice or a pinned version; GET /v1/models lists them.",
            code="invalid_request",
            param="model",
        )
    if unknown := sorted(key for key, value in body.items() if key not in offered and value is not None):
        reason = REASONS.get(unknown[0], "docs/http.md lists the fields of a request")
        raise InputError(
            f"{', '.join(unknown)}: not supported here. Leave it out: {reason}.",
            code="unsupported_field",
            param=unknown[0],
        )
    for key in ("max_tokens", "max_completion_tokens", "min_tokens"):
        at_most(body, key, limits.output_tokens)
    at_most(body, "n", limits.choices)
    if not limits.tools and body.get("tools") and body.get("tool_choice") in (None, "auto"):
        raise InputError(
            "tools: this server cannot read tool calls from the base's answers. Whoever runs it sets "
            "POLYTONE_TOOL_PARSER to the parser of that base, such as hermes; see docs/settings.md.",
            code="invalid_request",
            param="tools",
        )
    messages = body.get("messages")
    if isinstance(messages, list) and len(messages) > limits.messages:
        raise TooLargeError(
            f"messages: {len(messages)} are more than the {limits.messages} this server takes. Send the last ones.",
            code="too_many_messages",
            param="messages",
        )
    return model


def at_most(body: Body, key: str, limit: int) -> None:
    value = body.get(key)
    if isinstance(value, int) and value > limit:
        raise InputError(
            f"{key}: {value} is more than the {limit} this server gives.", code="invalid_request", param=key
        )


def complete_request(body: Body, manifest: Manifest | None, limits: RequestLimits) -> Body:
    """The request with the voice's own system prompt and sampling, and the server's limit, where it gives none."""
    filled = {key: value for key, value in body.items() if key != "metadata"}
    sampling: dict[str, Any] = {}
    if manifest is not None and manifest.sampling is not None:
        sampling = manifest.sampling.model_dump(exclude_none=True)
    if body.get("max_completion_tokens") is not None:
        sampling.pop("max_tokens", None)
    elif body.get("max_tokens") is None:
        sampling["max_tokens"] = min(sampling.get("max_tokens", limits.output_tokens), limits.output_tokens)
    for key, value in sampling.items():
        if filled.get(key) is None:
            filled[key] = value
    messages = body.get("messages")
    if manifest is not None and manifest.system_prompt and isinstance(messages, list):
        roles = [message.get("role") for message in messages if isinstance(message, dict)]
        if not {"system", "developer"} & set(roles):
            filled["messages"] = [{"role": "system", "content": manifest.system_prompt}, *messages]
    return filled


def include_usage(body: Body) -> bool:
    """Have the engine end a stream with its usage; returns whether the client asked for that."""
    options = body.get("stream_options")
    if not body.get("stream") or (options is not None and not isinstance(options, dict)):
        return True  # nothing to hide, or something for the engine to refuse
    requested = bool((options or {}).get("include_usage"))
    body["stream_options"] = {**(options or {}), "include_usage": True}
    return requested
