"""The database, the adapter store and the versions on disk, as commands use them."""

import getpass
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytone.contract.adapter import list_versions, read_version
from polytone.contract.base import load_base
from polytone.contract.errors import InputError
from polytone.contract.home import Home
from polytone.contract.manifest import MANIFEST, Manifest
from polytone.contract.version_id import voice_of
from polytone.serve.settings import Settings

from .output import did_you_mean

if TYPE_CHECKING:
    from polytone.serve.adapters.registry import Registry
    from polytone.serve.adapters.replicas import Replicas
    from polytone.serve.adapters.store import AdapterStore
    from polytone.serve.auth.keys import KeyStore
    from polytone.serve.database.session import Database


SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Stores:
    """The database as the commands see it."""

    database: "Database"
    registry: "Registry"
    replicas: "Replicas"
    keys: "KeyStore"


def open_state(settings: Settings, create: bool = False) -> Stores:
    """The stores of `open_database`."""
    from polytone.serve.adapters.registry import Registry
    from polytone.serve.adapters.replicas import Replicas
    from polytone.serve.auth.keys import KeyStore

    database = open_database(settings, create)
    return Stores(database, Registry(database), Replicas(database), KeyStore(database))


def open_database(settings: Settings, create: bool = False) -> "Database":
    """The database; unless it is to be created, an empty one in memory where there is none.

    So a command that only reads, or changes what must exist already, makes no folder and no file.
    """
    from polytone.serve.database import session

    url = settings.database()
    file = Path(url.removeprefix(SQLITE))
    if url.startswith(SQLITE) and not create and not file.exists():
        url = f"{SQLITE}:memory:"
    return session.open_database(url)


def open_store(settings: Settings) -> "AdapterStore | None":
    if not settings.adapter_store:
        return None
    from polytone.serve.adapters.store import open_store as open_adapter_store

    return open_adapter_store(settings.adapter_store, settings.max_upload_bytes)


def read_here(settings: Settings, store: "AdapterStore | None", version: str) -> Manifest:
    """Read a version as `read_version` does, after fetching it from the store if the home does not have it."""
    home = settings.paths()
    if store is not None and not (home.adapter_folder(version) / MANIFEST).is_file():
        from polytone.serve.adapters.fetch import fetch_version
        from polytone.serve.adapters.validation import ServedBase

        fetch_version(store, version, ServedBase(home, load_base(home, settings.base), settings.max_lora_rank))
    return read_version(home, version)


def actor() -> str:
    """The name that the audit log records for a change made by a command."""
    try:
        return f"{getpass.getuser()} on the command line"
    except (OSError, KeyError):
        return "the command line"


def resolve(settings: Settings, version: str) -> str:
    """A version id as it is; a voice's name as the version that answers for it."""
    if "@" in version:
        return version
    rollouts = open_state(settings).registry.desired().rollouts
    rollout = rollouts.get(version)
    if rollout is None:
        raise InputError(
            f"{version!r} is neither a version id nor a promoted voice.{did_you_mean(version, rollouts)}",
            code="version_not_found",
        )
    return rollout.main


def describe_versions(settings: Settings, state: Stores) -> list[dict[str, Any]]:
    """Every version on disk and in the registry, sorted by id, as `adapters list --json` prints it."""
    shares = {
        part.version: part.weight / sum(p.weight for p in rollout.parts)
        for rollout in state.registry.desired().rollouts.values()
        for part in rollout.parts
    }
    published = {row.id: row.state for row in state.registry.versions()}
    residency = state.replicas.residency()
    return [
        {
            "name": voice_of(version),
            "version": version,
            "share": round(shares.get(version, 0.0), 4),
            "wanted": published.get(version, "on disk"),
            "replicas": [
                {"replica": one.replica, "state": one.state, "reason": one.reason}
                for one in residency
                if one.version == version
            ],
        }
        for version in sorted({*published, *list_versions(settings.paths())})
    ]


def newest_version(home: Home, version: str) -> str:
    """A version id as it is; a voice's name as its newest version on disk.

    Raises:
        InputError: `version_not_found`.
    """
    if "@" in version:
        return version
    versions = [one for one in list_versions(home) if voice_of(one) == version]
    if not versions:
        known = {voice_of(one) for one in list_versions(home)}
        raise InputError(
            f"No version of {version!r} is on disk under {home.adapters}.{did_you_mean(version, known)}",
            code="version_not_found",
        )
    return versions[-1]
