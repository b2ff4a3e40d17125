"""A patch of vLLM's CPU worker: a request with a `seed` whose prompt is read in chunks no longer ends the engine.

vLLM 0.32 samples for such a request while its prompt is still being read, discards the sample, and rewinds the random
generator by setting its offset. A CPU generator has no offset, and the worker fails.
"""

from typing import Any

import numpy as np
from vllm.v1.worker.cpu_model_runner import CPUModelRunner


def take_draws_back() -> None:
    """Start such a generator anew, in this process: nothing that counts was drawn from it before the prompt's end.

    (Of a request that was put off half-way and is read again, the draws begin again too.) Again changes nothing.
    """
    original = CPUModelRunner._bookkeeping_sync
    if getattr(original, "takes_draws_back", False):
        return

    def bookkeeping(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        thrown_away = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0].tolist()
        reading = {row: generators.pop(row) for row in thrown_away if row in generators}
        for generator in reading.values():
            generator.manual_seed(generator.initial_seed())
        try:
            return original(self, *args, **kwargs)
        finally:
            generators.update(reading)

    bookkeeping.takes_draws_back = True  # type: ignore[attr-defined]
    CPUModelRunner._bookkeeping_sync = bookkeeping
