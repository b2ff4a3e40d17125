"""The registry: which versions should be served and which of them answers for a voice. Lives in the database."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from polytone.contract.errors import CheckError, InputError, NotFoundError
from polytone.contract.home import check_name, split_version

from .database import AliasRow, ReplicaRow, ResidencyRow, VersionRow, now

PUBLISHED, RETIRED = "published", "retired"


@dataclass(frozen=True)
class Desired:
    """What every replica should come to: versions to hold, and the version each alias names."""

    versions: frozenset[str] = frozenset()
    aliases: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Residency:
    """What one replica last said of one version."""

    replica: str
    version: str
    state: str
    reason: str | None


class Registry:
    """Reads and changes the desired state; every method is one transaction. Methods block: call them in a thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        self._engine.dispose()

    def desired(self) -> Desired:
        with Session(self._engine) as session:
            versions = session.scalars(select(VersionRow.id).where(VersionRow.state == PUBLISHED))
            aliases = session.scalars(select(AliasRow))
            return Desired(frozenset(versions), {row.name: row.version for row in aliases})

    def publish(self, version: str) -> None:
        """Ask every replica to load `version`. Again is fine; a retired version comes back."""
        name, _ = split_version(version)
        with Session(self._engine) as session, session.begin():
            row = session.get(VersionRow, version)
            if row is None:
                session.add(VersionRow(id=version, name=name, state=PUBLISHED))
            else:
                row.state = PUBLISHED

    def promote(self, alias: str, version: str) -> str | None:
        """Let `version` answer for `alias`; returns the version that did so before.

        Raises:
            NotFoundError: `version_not_published`.
            InputError: `alias_mismatch` if the version belongs to another voice.
        """
        check_name(alias, "alias")
        if split_version(version)[0] != alias:
            raise InputError(
                f"{version} is a version of {split_version(version)[0]}, not of {alias}.",
                code="alias_mismatch",
            )
        with Session(self._engine) as session, session.begin():
            row = session.get(VersionRow, version)
            if row is None or row.state != PUBLISHED:
                raise NotFoundError(
                    f"{version} is not published. Run: polytone adapters publish {version}",
                    code="version_not_published",
                )
            current = session.get(AliasRow, alias)
            if current is None:
                session.add(AliasRow(name=alias, version=version))
                return None
            before = current.version
            current.version, current.promoted_at = version, now()
            return before

    def retire(self, version: str) -> None:
        """Ask every replica to drain and unload `version`. Its files stay. Again is fine.

        Raises:
            NotFoundError: `version_not_published`.
            CheckError: `version_in_use` while an alias names it.
        """
        with Session(self._engine) as session, session.begin():
            row = session.get(VersionRow, version)
            if row is None:
                raise NotFoundError(f"{version} was never published.", code="version_not_published")
            alias = session.scalar(select(AliasRow.name).where(AliasRow.version == version))
            if alias is not None:
                raise CheckError(
                    f"{version} answers for {alias}. Promote another version of {alias} first, "
                    f"or remove the voice with: polytone adapters retire {alias}",
                    code="version_in_use",
                )
            row.state = RETIRED

    def remove_alias(self, alias: str) -> str:
        """Take the voice `alias` away; returns the version it named, which stays published."""
        with Session(self._engine) as session, session.begin():
            row = session.get(AliasRow, alias)
            if row is None:
                raise NotFoundError(f"There is no voice {alias!r}.", code="voice_not_found")
            version = row.version
            session.delete(row)
            return version

    def report(self, replica: str, states: dict[str, tuple[str, str | None]]) -> None:
        """Store that `replica` lives and what it says of its versions, in place of what it said before."""
        with Session(self._engine) as session, session.begin():
            session.merge(ReplicaRow(name=replica, seen_at=now()))
            session.execute(delete(ResidencyRow).where(ResidencyRow.replica == replica))
            session.add_all(
                ResidencyRow(replica=replica, version=version, state=state, reason=reason)
                for version, (state, reason) in states.items()
            )

    def leave(self, replica: str) -> None:
        """Forget a replica that stops."""
        with Session(self._engine) as session, session.begin():
            session.execute(delete(ResidencyRow).where(ResidencyRow.replica == replica))
            session.execute(delete(ReplicaRow).where(ReplicaRow.name == replica))

    def replicas(self, newer_than: timedelta) -> set[str]:
        """Replicas heard from within `newer_than`."""
        with Session(self._engine) as session:
            rows = session.scalars(select(ReplicaRow))
            return {row.name for row in rows if aware(row.seen_at) > now() - newer_than}

    def residency(self, newer_than: timedelta) -> list[Residency]:
        """What replicas heard from within `newer_than` say."""
        living = self.replicas(newer_than)
        with Session(self._engine) as session:
            rows = session.scalars(select(ResidencyRow).where(ResidencyRow.replica.in_(living)))
            return [Residency(row.replica, row.version, row.state, row.reason) for row in rows]

    def versions(self) -> list[VersionRow]:
        with Session(self._engine, expire_on_commit=False) as session:
            return list(session.scalars(select(VersionRow).order_by(VersionRow.name, VersionRow.published_at)))


def aware(moment: datetime) -> datetime:
    """SQLite forgets the time zone; what is stored is UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=now().tzinfo)
