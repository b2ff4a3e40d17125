"""Fetching: bring versions from the adapter store into the home."""

import asyncio
import concurrent.futures
import filecmp
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from polytone.contract.adapter import check_servable
from polytone.contract.errors import CheckError, UnavailableError, combined
from polytone.contract.files import folder_written_whole, remove_folder
from polytone.contract.version_id import VersionId
from polytone.serve.metrics import Metrics

from .store import SETTING, AdapterStore
from .validation import ServedBase, inspect_received

log = logging.getLogger(__name__)

T = TypeVar("T")

DAMAGES = frozenset({"wrong_digest", "file_truncated", "files_missing", "not_safetensors", "reference_mismatch"})
FETCHES_AT_ONCE = 4
FETCH_SECONDS = 600.0  # a store that hangs for longer counts as away


class Fetcher:
    """Fetches what this replica's home lacks, a few versions at once."""

    def __init__(self, store: AdapterStore, served: ServedBase, metrics: Metrics) -> None:
        self._store = store
        self._served = served
        self._metrics = metrics
        self._places = asyncio.Semaphore(FETCHES_AT_ONCE)

    async def fetch(self, version: str) -> None:
        """Fetch as `fetch_version` does, in a thread, for ten minutes at most."""
        async with self._places:
            started = time.monotonic()
            try:
                async with asyncio.timeout(FETCH_SECONDS):
                    await in_daemon_thread(fetch_version, self._store, version, self._served)
            except TimeoutError:
                self._count("failed")
                raise UnavailableError(
                    f"The adapter store {self._store} ({SETTING}) did not give {version} in {FETCH_SECONDS:.0f} s.",
                    code="store_unavailable",
                ) from None
            except Exception:
                self._count("failed")
                raise
            seconds = time.monotonic() - started
            self._count("fetched")
            self._metrics.adapter_fetch_seconds.observe(seconds)
            log.info("%s was fetched from the adapter store (%.2f s)", version, seconds)

    def _count(self, result: str) -> None:
        self._metrics.adapter_fetches_total.labels(result=result).inc()


def fetch_version(store: AdapterStore, version: str, served: ServedBase) -> None:
    """Fetch a version into the home and check it as an upload is checked. A copy in the home that differs is replaced.

    Nobody sees a part of it, and several may fetch the same version at once.

    Raises:
        NotFoundError: `version_not_found`.
        CheckError: every reason why it is refused.
        UnavailableError: `store_unavailable`.
        StorageError: `disk_full` or `disk_error`.
    """
    target = served.home.adapter_folder(version)
    with folder_written_whole(target) as folder:
        try:
            store.copy_out(version, folder, partial(check_servable, base=served.base, max_rank=served.max_rank))
            _, problems = inspect_received(folder, VersionId.parse(version).voice, served)
            if problems:
                raise with_remedy(combined(problems), version)
        except CheckError as error:
            error.message = error.message.replace(str(folder), store.place(version))
            raise
        if not same_files(folder, target):
            remove_folder(target)


def with_remedy(error: CheckError, version: str) -> CheckError:
    """Files that do not match their manifest may be whole where they were made."""
    if {reason["code"] for reason in error.reasons} & DAMAGES:
        error.message += f"\nWrite it anew from where it was made: polytone adapters publish {version}"
    return error


def same_files(folder: Path, other: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    if not other.is_dir() or names != {path.name for path in other.iterdir()}:
        return False
    return all(filecmp.cmp(folder / name, other / name, shallow=False) for name in names)


async def in_daemon_thread(function: Callable[..., T], *arguments: Any) -> T:
    """As `asyncio.to_thread`, in a thread that neither other work nor the end of the process waits for."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="adapter store").start()
    return await asyncio.wrap_future(future)
