"""What each replica answers a voice with, so that a change can be waited for."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("replicas", sa.Column("routes", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    op.drop_column("replicas", "routes")
