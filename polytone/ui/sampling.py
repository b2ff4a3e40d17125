"""Sampling: the values that a tester may set, and the request with them."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

OWN = "the voice's own"


@dataclass(frozen=True)
class Sampling:
    """None leaves a value to the voice."""

    temperature: float | None
    max_tokens: float | None
    seed: float | None

    def request(self, model: str, messages: list[dict[str, str]]) -> dict[str, Any]:
        """A chat completion."""
        body: dict[str, Any] = {"model": model, "messages": messages}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.max_tokens is not None:
            body["max_tokens"] = int(self.max_tokens)
        if self.seed is not None:
            body["seed"] = int(self.seed)
        return body


def sampling_fields() -> list[gr.Number]:
    """A row of components for the values of `Sampling`, in their order."""
    with gr.Row():
        return [
            gr.Number(label="Temperature", value=None, minimum=0, maximum=2, step=0.1, placeholder=OWN),
            gr.Number(label="Longest answer, in tokens", value=None, minimum=1, precision=0, placeholder=OWN),
            gr.Number(label="Seed", value=None, precision=0, placeholder="none"),
        ]
