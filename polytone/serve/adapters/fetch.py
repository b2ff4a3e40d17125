"""Bring versions from the adapter store into the home, a few at once."""

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
from polytone.contract.base import Base, base_folder, module_shapes
from polytone.contract.errors import CheckError, UnavailableError, combined
from polytone.contract.files import folder_written_whole, remove_folder
from polytone.contract.home import Home
from polytone.contract.version_id import VersionId
from polytone.serve.metrics import Metrics

from .store import SETTING, AdapterStore
from .validation import inspect_received

log = logging.getLogger(__name__)

T = TypeVar("T")

DAMAGES = frozenset({"wrong_digest", "file_truncated", "files_missing", "not_safetensors", "reference_mismatch"})
FETCHES_AT_ONCE = 4
FETCH_SECONDS = 600.0  # a store that hangs for longer is away


def fetch_version(store: AdapterStore, version: str, home: Home, base: Base, max_rank: int) -> None:
    """Bring a version from the store into the home, checked as an upload is. A copy there that differs gives way.

    Nobody sees a part of it, and two may fetch the same at once.

    Raises:
        NotFoundError: `version_not_found`.
        CheckError: every reason why it cannot be taken.
        UnavailableError: `store_unavailable`.
        StorageError: `disk_full` or `disk_error`.
    """
    target = home.adapter_folder(version)
    with folder_written_whole(target) as folder:
        try:
            store.copy_out(version, folder, partial(check_servable, base=base, max_rank=max_rank))
            shapes = module_shapes(base_folder(home, base.id) / "source")
            found = inspect_received(folder, VersionId.parse(version).voice, base, shapes, max_rank)[1]
            if found:
                raise with_remedy(combined(found), version)
        except CheckError as error:
            error.message = error.message.replace(str(folder), store.place(version))
            raise
        if not same_files(folder, target):
            remove_folder(target)


def with_remedy(error: CheckError, version: str) -> CheckError:
    """Of files that are not what their manifest says there may be better ones elsewhere."""
    if {one["code"] for one in error.reasons} & DAMAGES:
        error.message += f"\nWrite it anew from where it was made: polytone adapters publish {version}"
    return error


def same_files(one: Path, other: Path) -> bool:
    names = {path.name for path in one.iterdir()}
    if not other.is_dir() or names != {path.name for path in other.iterdir()}:
        return False
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)


class Fetcher:
    """Fetches what this replica's home lacks, a few versions at once."""

    def __init__(self, store: AdapterStore, home: Home, base: Base, max_rank: int, metrics: Metrics) -> None:
        self._fetch = partial(fetch_version, store, home=home, base=base, max_rank=max_rank)
        self._store = store
        self._metrics = metrics
        self._places = asyncio.Semaphore(FETCHES_AT_ONCE)

    async def fetch(self, version: str) -> None:
        """As `fetch_version`."""
        async with self._places:
            began = time.monotonic()
            try:
                async with asyncio.timeout(FETCH_SECONDS):
                    await apart(self._fetch, version)
            except TimeoutError:
                self._count("failed")
                raise UnavailableError(
                    f"The adapter store {self._store} ({SETTING}) did not give {version} in {FETCH_SECONDS:.0f} s.",
                    code="store_unavailable",
                ) from None
            except Exception:
                self._count("failed")
                raise
            seconds = time.monotonic() - began
            self._count("fetched")
            self._metrics.adapter_fetch_seconds.observe(seconds)
            log.info("%s was fetched from the adapter store (%.2f s)", version, seconds)

    def _count(self, result: str) -> None:
        self._metrics.adapter_fetches_total.labels(result=result).inc()


async def apart(function: Callable[..., T], *arguments: Any) -> T:
    """As `asyncio.to_thread`, in a thread that neither other work nor the end of the process waits for."""
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        if done.set_running_or_notify_cancel():
            try:
                done.set_result(function(*arguments))
            except BaseException as error:
                done.set_exception(error)

    threading.Thread(target=run, daemon=True, name="adapter store").start()
    return await asyncio.wrap_future(done)
