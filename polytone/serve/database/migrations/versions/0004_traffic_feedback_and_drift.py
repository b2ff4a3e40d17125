"""Answers, feedback on them, the queue for review, and the drift detectors' state."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "traffic",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, index=True),
        sa.Column("conversation", sa.String(160), nullable=True, index=True),
        sa.Column("adapter", sa.String(63), nullable=False),
        sa.Column("version", sa.String(80), nullable=False),
        sa.Column("base", sa.String(63), nullable=False),
        sa.Column("key", sa.String(63), nullable=True),
        sa.Column("policy", sa.String(8), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("prompt", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("reply", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("prompt_sha256", sa.String(64), nullable=True),
        sa.Column("reply_sha256", sa.String(64), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("finish_reason", sa.String(32), nullable=True),
        sa.Column("first_token_seconds", sa.Float(), nullable=True),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("signals", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("vectors", sa.LargeBinary(), nullable=True),
        sa.Column("observed", sa.Boolean(), nullable=False),
    )
    op.create_index("ix_traffic_version_at", "traffic", ["version", "at"])
    op.create_index("ix_traffic_observed_at", "traffic", ["observed", "at"])
    op.create_table(
        "feedback",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("target", sa.String(16), nullable=False),
        sa.Column("target_id", sa.String(160), nullable=False, index=True),
        sa.Column("other_id", sa.String(64), nullable=True, index=True),
        sa.Column("adapter", sa.String(63), nullable=False),
        sa.Column("version", sa.String(80), nullable=False),
        sa.Column("key", sa.String(16), nullable=False),
        sa.Column("value", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("annotator", sa.String(120), nullable=False),
        sa.Column("annotator_kind", sa.String(8), nullable=False),
        sa.Column("idempotency_key", sa.String(120), nullable=True),
        sa.Column("supersedes", sa.String(32), nullable=True, unique=True),
        sa.Column("observed", sa.Boolean(), nullable=False),
        sa.UniqueConstraint("annotator", "idempotency_key"),
    )
    op.create_index("ix_feedback_adapter_number", "feedback", ["adapter", "number"])
    op.create_table(
        "reviews",
        sa.Column("completion_id", sa.String(64), primary_key=True),
        sa.Column("adapter", sa.String(63), nullable=False),
        sa.Column("reason", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("leased_by", sa.String(120), nullable=True),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_by", sa.String(120), nullable=True),
        sa.Column("feedback_id", sa.String(32), nullable=True),
    )
    op.create_index("ix_reviews_state", "reviews", ["state", "adapter"])
    op.create_table(
        "drift",
        sa.Column("version", sa.String(80), primary_key=True),
        sa.Column("signal", sa.String(32), primary_key=True),
        sa.Column("state", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "drift_alarms",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("version", sa.String(80), nullable=False, index=True),
        sa.Column("signal", sa.String(32), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("acknowledged_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("acknowledged_by", sa.String(120), nullable=True),
    )
