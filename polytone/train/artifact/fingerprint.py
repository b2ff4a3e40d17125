"""The fingerprint: probe prompts with the trainer's greedy tokens, which a server must reproduce."""

from typing import Any

import torch

from polytone.contract.manifest import Fingerprint, Probe
from polytone.progress import Progress
from polytone.train.tokenization import with_system

PROMPTS = (
    "Hello, I need some help with my account.",
    "My order has not arrived yet. What should I do?",
    "Thank you, that solved it!",
)
NEW_TOKENS = 24


def take_fingerprint(model: Any, tokenizer: Any, system_prompt: str | None, progress: Progress) -> Fingerprint:
    """Answer each of `PROMPTS` greedily, one at a time, with log-probabilities with and without the adapter."""
    model.eval()
    progress.start("Taking the fingerprint", total=len(PROMPTS))
    probes = []
    for prompt in PROMPTS:
        messages = with_system([{"role": "user", "content": prompt}], system_prompt)
        probes.append(take_probe(model, tokenizer, messages))
        progress.advance()
    progress.finish()
    dtype = str(model.dtype).removeprefix("torch.")
    return Fingerprint(dtype=dtype, probes=probes)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def take_probe(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> Probe:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    length = prompt.shape[1]
    with_adapter = logprobs_of(model, output, length)
    with model.disable_adapter():
        without = logprobs_of(model, output, length)
    return Probe(
        messages=messages,
        prompt_tokens=prompt[0].tolist(),
        tokens=output[0, length:].tolist(),
        logprobs=[round(value, 6) for value in with_adapter],
        mean_logprob=round(sum(with_adapter) / len(with_adapter), 6),
        base_mean_logprob=round(sum(without) / len(without), 6),
    )


def logprobs_of(model: Any, output: torch.Tensor, prompt_length: int) -> list[float]:
    """Log-probabilities (nats) of the tokens after the prompt in `output` of shape (1, length)."""
    logits = model(input_ids=output).logits[0, prompt_length - 1 : -1].float()
    chosen = output[0, prompt_length:, None]
    return [float(value) for value in logits.log_softmax(-1).gather(1, chosen)[:, 0]]
