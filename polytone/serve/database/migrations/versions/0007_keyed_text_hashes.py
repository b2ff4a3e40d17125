"""A secret for hashes of texts. Hashes made without one are dropped: short texts could be guessed from them."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.String(64), nullable=False),
    )
    op.execute("UPDATE traffic SET prompt_sha256 = NULL, reply_sha256 = NULL")
