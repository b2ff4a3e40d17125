"""The engine's processes: found and ended."""

import contextlib

import psutil


def end_children(patience: float = 5.0) -> None:
    """End every process that this one started: terminate, wait up to `patience` seconds, kill."""
    children = engine_processes()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    _, alive = psutil.wait_procs(children, timeout=patience)
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(alive, timeout=patience)


def engine_processes() -> list[psutil.Process]:
    """The engine's core and workers. Python's own resource tracker is a child too; it ends with this process."""
    processes = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if not any("resource_tracker" in word for word in child.cmdline()):
                processes.append(child)
    return processes
