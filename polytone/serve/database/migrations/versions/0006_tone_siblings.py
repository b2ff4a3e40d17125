"""Siblings of a version's tone classifier in a table of their own, out of the detectors'."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

SIGNAL = "siblings"  # what their rows among the detectors were called


def upgrade() -> None:
    siblings = op.create_table(
        "tone_siblings",
        sa.Column("version", sa.String(80), primary_key=True),
        sa.Column("siblings", sa.JSON(), nullable=False),
    )
    drift = sa.table("drift", sa.column("version"), sa.column("signal"), sa.column("state", sa.JSON()))
    connection = op.get_bind()
    rows = connection.execute(sa.select(drift.c.version, drift.c.state).where(drift.c.signal == SIGNAL)).all()
    if rows:
        connection.execute(
            sa.insert(siblings), [{"version": version, "siblings": state["versions"]} for version, state in rows]
        )
    connection.execute(sa.delete(drift).where(drift.c.signal == SIGNAL))
