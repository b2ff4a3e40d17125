"""Quiet the third-party libraries that training imports."""

import logging
import os
import warnings


def quiet_libraries(offline: bool = True) -> None:
    """No usage statistics, no progress bars of their own, no chatter, and with `offline` no network.

    PyTorch's threads sleep while they wait for each other instead of spinning: as soon as another program needs a core,
    spinning threads take its time from the thread that they wait for.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.filterwarnings("ignore")
    for name in ("bitsandbytes", "transformers", "trl", "peft", "datasets", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
