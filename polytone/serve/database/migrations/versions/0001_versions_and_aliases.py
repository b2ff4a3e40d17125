"""Versions, aliases, and the state of versions on each replica."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "versions",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_versions_name", "versions", ["name"])
    op.create_table(
        "aliases",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("version", sa.String(80), sa.ForeignKey("versions.id"), nullable=False),
        sa.Column("promoted_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "replicas",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "residency",
        sa.Column("replica", sa.String(64), primary_key=True),
        sa.Column("version", sa.String(80), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
    )
