"""Replicas: the state that each running server reports of itself and of its versions. It lives in the database."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, select

from polytone.serve.database.session import Database, now, reading, writing
from polytone.serve.database.tables import ReplicaRow, ResidencyRow

ALIVE = timedelta(seconds=30)
FORGOTTEN = timedelta(hours=1)


@dataclass(frozen=True)
class Residency:
    """The state of one version on one replica, as the replica last reported it."""

    replica: str
    version: str
    state: str
    reason: str | None


class Replicas:
    """Reads and writes the observed state. Methods block: call them in a thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reported: dict[str, dict[str, tuple[str, str | None]]] = {}

    def report(self, replica: str, states: dict[str, tuple[str, str | None]], routes: dict[str, int]) -> None:
        """Store that `replica` is alive and, if they changed, the states of its versions.

        Args:
            states: version -> state and the reason why it failed.
            routes: voice -> the generation of the rollout that answers for it.
        """
        with writing(self._database) as session:
            session.execute(delete(ReplicaRow).where(ReplicaRow.seen_at < now() - FORGOTTEN))
            is_known = session.get(ReplicaRow, replica) is not None
            session.merge(ReplicaRow(name=replica, seen_at=now(), routes=routes))
            session.flush()
            if is_known and self._reported.get(replica) == states:
                return
            session.execute(delete(ResidencyRow).where(ResidencyRow.replica == replica))
            session.add_all(
                ResidencyRow(replica=replica, version=version, state=state, reason=reason)
                for version, (state, reason) in states.items()
            )
        self._reported[replica] = states

    def leave(self, replica: str) -> None:
        """Remove a replica that stops."""
        with writing(self._database) as session:
            session.execute(delete(ResidencyRow).where(ResidencyRow.replica == replica))
            session.execute(delete(ReplicaRow).where(ReplicaRow.name == replica))
        self._reported.pop(replica, None)

    def living(self, newer_than: timedelta = ALIVE) -> set[str]:
        """Replicas heard from within `newer_than`."""
        return set(self.routes(newer_than))

    def routes(self, newer_than: timedelta = ALIVE) -> dict[str, dict[str, int]]:
        """Replica -> voice -> the generation of the rollout it answers with. Of replicas heard from lately."""
        with reading(self._database) as session:
            rows = session.scalars(select(ReplicaRow))
            return {row.name: row.routes for row in rows if row.seen_at > now() - newer_than}

    def residency(self, newer_than: timedelta = ALIVE) -> list[Residency]:
        """The versions on replicas heard from within `newer_than`."""
        living = self.living(newer_than)
        with reading(self._database) as session:
            rows = session.scalars(select(ResidencyRow).where(ResidencyRow.replica.in_(living)))
            return [Residency(row.replica, row.version, row.state, row.reason) for row in rows]
