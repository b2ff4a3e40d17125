"""The engine's processes, and how they are ended."""

import contextlib

import psutil


def end_children(patience: float = 5.0) -> None:
    """End what this process started and has not ended: terminate, wait, kill."""
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
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if not any("resource_tracker" in word for word in child.cmdline()):
                found.append(child)
    return found
