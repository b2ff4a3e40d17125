"""The rollouts that each replica answers with, so that commands can wait for a change."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("replicas", sa.Column("routes", sa.JSON(), nullable=False, server_default="{}"))
