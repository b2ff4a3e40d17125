"""A vLLM plugin that ends an engine whose server was killed. vLLM calls `register` in each of its processes.

A server tells its engine to stop, but one that was killed, by `kill -9` or for lack of memory, cannot. Without the
plugin the engine would keep its memory while the next one starts. Ctrl-C in a terminal reaches the engine as well as
its server; the engine leaves it to the server, which lets answers finish first. This module imports the standard
library alone.
"""

import multiprocessing
import os
import signal
import threading
import time

LOOK_SECONDS = 1.0


def register() -> None:
    if multiprocessing.parent_process() is not None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=end_without, args=(os.getppid(),), daemon=True, name="watchdog").start()


def end_without(parent: int) -> None:
    """End this process as soon as it has another parent."""
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)
