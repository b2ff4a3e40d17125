"""A plugin for vLLM: an engine ends when the process that started it is gone. vLLM calls `register` in its processes.

Without it `kill -9` of the server, or the kernel when memory is short, leaves an engine with all its memory beside the
next one: vLLM tells its engine to end, and a server that was killed tells nobody.
"""

import multiprocessing
import os
import threading
import time

LOOK_SECONDS = 1.0


def register() -> None:
    if multiprocessing.parent_process() is not None:
        threading.Thread(target=end_without, args=(os.getppid(),), daemon=True, name="orphans").start()


def end_without(parent: int) -> None:
    """End this process at once when it has another parent."""
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)
