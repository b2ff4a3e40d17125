"""A patch of vLLM's CPU sampler: log-probabilities are computed for the requests that ask for them, not for the batch.

vLLM 0.32 computes them for every row and drops those that were not asked for: with 33 rows and a vocabulary of 49,152
about 4.5 ms of a step (docs/performance.md), and ten times that on a busy machine. Every version that is loaded is
verified by such a request.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.sampler import Sampler
from vllm.v1.worker.cpu_model_runner import CPUModelRunner


def limit_logprobs_to_requested_rows() -> None:
    """Patch the sampler of this process. May be called again."""
    original = CPUModelRunner._sample
    if getattr(original, "is_polytone", False):
        return

    def sample(self: Any, logits: Any, spec_decode_metadata: Any) -> Any:
        batch = self.input_batch
        requested = [batch.req_id_to_index[request] for request in batch.num_logprobs]
        plain = spec_decode_metadata is None and self.sampler.logprobs_mode == "raw_logprobs"
        some = 0 < len(requested) < (0 if logits is None else len(logits))
        if not (plain and some) or batch.sampling_metadata.logprob_token_ids or -1 in batch.num_logprobs.values():
            return original(self, logits, spec_decode_metadata)
        with logprobs_of(self.sampler, torch.tensor(sorted(requested))):
            return original(self, logits, spec_decode_metadata)

    sample.is_polytone = True  # type: ignore[attr-defined]
    CPUModelRunner._sample = sample


@contextlib.contextmanager
def logprobs_of(sampler: Any, rows: torch.Tensor) -> Iterator[None]:
    """Within the block, compute log-probabilities of `rows` (n,) alone. Other rows get zeros, which nobody reads."""

    def compute_logprobs(logits: torch.Tensor) -> torch.Tensor:
        logprobs: torch.Tensor = Sampler.compute_logprobs(logits[rows])
        return logprobs

    def gather_logprobs(logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> LogprobsTensors:
        selected = Sampler.gather_logprobs(logprobs, num_logprobs, token_ids[rows])
        return LogprobsTensors(*(scatter(len(token_ids), rows, part) for part in selected[:3]))

    sampler.compute_logprobs, sampler.gather_logprobs = compute_logprobs, gather_logprobs
    try:
        yield
    finally:
        del sampler.compute_logprobs, sampler.gather_logprobs


def scatter(count: int, rows: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """`part` (n, ...) placed at `rows` (n,) of a tensor of zeros (count, ...)."""
    return part.new_zeros((count, *part.shape[1:])).index_copy_(0, rows, part)
