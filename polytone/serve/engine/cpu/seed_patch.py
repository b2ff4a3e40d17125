"""A patch of vLLM's CPU worker: a request with a `seed` whose prompt is read in chunks no longer ends the engine.

vLLM 0.32 samples for such a request while its prompt is still being read, discards the sample, and rewinds the random
generator by setting its offset. A CPU generator has no offset, and the worker fails.
"""

from typing import Any

import numpy as np
from vllm.v1.worker.cpu_model_runner import CPUModelRunner


def restart_generators() -> None:
    """Patch the worker of this process to start such a generator anew instead. May be called again.

    Until the end of the prompt every sample is discarded, so nothing is lost. A request that is preempted and read
    again also starts anew.
    """
    original = CPUModelRunner._bookkeeping_sync
    if getattr(original, "is_polytone", False):
        return

    def bookkeeping(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        discarded = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0].tolist()
        reading = {row: generators.pop(row) for row in discarded if row in generators}
        for generator in reading.values():
            generator.manual_seed(generator.initial_seed())
        try:
            return original(self, *args, **kwargs)
        finally:
            generators.update(reading)

    bookkeeping.is_polytone = True  # type: ignore[attr-defined]
    CPUModelRunner._bookkeeping_sync = bookkeeping
