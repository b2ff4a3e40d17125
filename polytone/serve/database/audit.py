"""The audit log: who changed what, when, from what to what. Entries are only ever added."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from .session import Database, reading
from .tables import AuditRow

LONGEST_ACTOR = LONGEST_TARGET = 120


@dataclass(frozen=True)
class AuditEntry:
    """One change. `before` and `after` are JSON values, as the action needs them."""

    id: int
    at: datetime
    actor: str
    action: str
    target: str
    before: Any
    after: Any

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "at": self.at.isoformat(),
            "actor": self.actor,
            "action": self.action,
            "target": self.target,
            "before": self.before,
            "after": self.after,
        }


def record(session: Session, actor: str, action: str, target: str, before: Any, after: Any) -> None:
    """Add an entry to the transaction that makes the change. `actor` and `target` are cut where they are too long."""
    row = AuditRow(
        actor=actor[:LONGEST_ACTOR], action=action, target=target[:LONGEST_TARGET], before=before, after=after
    )
    session.add(row)


def read_audit(database: Database, limit: int, target: str | None = None) -> list[AuditEntry]:
    """The newest entries, newest first; those of one voice, version or key if `target` names it. Blocks."""
    newest = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
    if target is not None:
        newest = newest.where(AuditRow.target == target)
    with reading(database) as session:
        return [
            AuditEntry(row.id, row.at, row.actor, row.action, row.target, row.before, row.after)
            for row in session.scalars(newest)
        ]
