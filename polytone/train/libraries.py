"""Quiet the third-party libraries that training imports."""

import logging
import os
import warnings


def quiet_libraries(offline: bool = True) -> None:
    """No usage statistics, no bars of their own, no chatter, and unless a hub is asked for, no network."""
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
