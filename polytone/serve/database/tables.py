"""The tables: versions, rollouts, replicas, keys, the audit log, answers, feedback, reviews, conversations and drift.

A column called `adapter` holds the name of a voice; its attribute is called `voice`.
"""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from .session import in_utc, now

NULLABLE_JSON = JSON(none_as_null=True)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment, in UTC. SQLite keeps no time zone: a moment is stored in UTC and gets its zone back when it is read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else in_utc(value)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else in_utc(value)


class Table(DeclarativeBase):
    type_annotation_map: ClassVar = {datetime: UtcDateTime}


class VersionRow(Table):
    """A version that replicas should load (`published`) or unload (`retired`)."""

    __tablename__ = "versions"

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), index=True)
    state: Mapped[str] = mapped_column(String(16))
    published_at: Mapped[datetime] = mapped_column(default=now)


class RolloutRow(Table):
    """The versions that answer for a voice. The highest generation is in force; without parts no version answers.

    `parts` is a list of [version, weight]; `previous` is the generation that a rollback returns to.
    """

    __tablename__ = "rollouts"
    __table_args__ = (UniqueConstraint("voice", "generation"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    voice: Mapped[str] = mapped_column(String(63))
    generation: Mapped[int]
    parts: Mapped[list[Any]] = mapped_column(JSON)
    previous: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(default=now)


class AuditRow(Table):
    """One entry of the audit log. Rows are only ever added."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(default=now)
    actor: Mapped[str] = mapped_column(String(120))
    action: Mapped[str] = mapped_column(String(32))
    target: Mapped[str] = mapped_column(String(120), index=True)
    before: Mapped[Any] = mapped_column(JSON, nullable=True)
    after: Mapped[Any] = mapped_column(JSON, nullable=True)


class KeyRow(Table):
    """An API key: only a hash of its secret is kept."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    kind: Mapped[str] = mapped_column(String(16))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    adapters: Mapped[list[str] | None] = mapped_column(JSON)
    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None]
    concurrent_requests: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class ReplicaRow(Table):
    """A running server, when it last reported, and which generation of each voice's rollout it answers with."""

    __tablename__ = "replicas"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    seen_at: Mapped[datetime] = mapped_column(default=now)
    routes: Mapped[dict[str, int]] = mapped_column(JSON, default=dict)


class ResidencyRow(Table):
    """The state of a version on a replica: loading, ready, draining or failed, and the reason."""

    __tablename__ = "residency"

    replica: Mapped[str] = mapped_column(ForeignKey("replicas.name", ondelete="CASCADE"), primary_key=True)
    version: Mapped[str] = mapped_column(String(80), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)


class AnswerRow(Table):
    """One answer.

    `prompt` is a list of messages or a text, `reply` the assistant's message. The content policy at the time decided
    whether they, their hashes or neither were kept. `vectors` are two embeddings (float16), of prompt and reply.
    """

    __tablename__ = "traffic"
    __table_args__ = (
        Index("ix_traffic_version_at", "version", "at"),
        Index("ix_traffic_observed_at", "observed", "at"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    conversation: Mapped[str | None] = mapped_column(String(160), index=True)
    voice: Mapped[str] = mapped_column("adapter", String(63))
    version: Mapped[str] = mapped_column(String(80))
    base: Mapped[str] = mapped_column(String(63))
    key: Mapped[str | None] = mapped_column(String(63))
    policy: Mapped[str] = mapped_column(String(8))
    status: Mapped[int]
    parameters: Mapped[dict[str, Any]] = mapped_column(JSON)
    prompt: Mapped[Any] = mapped_column(NULLABLE_JSON, nullable=True)
    reply: Mapped[Any] = mapped_column(NULLABLE_JSON, nullable=True)
    prompt_sha256: Mapped[str | None] = mapped_column(String(64))
    reply_sha256: Mapped[str | None] = mapped_column(String(64))
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    finish_reason: Mapped[str | None] = mapped_column(String(32))
    first_token_seconds: Mapped[float | None] = mapped_column(Float)
    seconds: Mapped[float] = mapped_column(Float)
    signals: Mapped[dict[str, float] | None] = mapped_column(NULLABLE_JSON)
    vectors: Mapped[bytes | None] = mapped_column(LargeBinary)
    observed: Mapped[bool] = mapped_column(default=False)


class FeedbackRow(Table):
    """One statement about an answer, a conversation or a pair of answers. Rows are only ever added.

    A row may supersede an earlier one and so replace it; with the key `retract` it only removes it.
    """

    __tablename__ = "feedback"
    __table_args__ = (
        UniqueConstraint("annotator", "idempotency_key"),
        Index("ix_feedback_adapter_number", "adapter", "number"),
    )

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    at: Mapped[datetime] = mapped_column(default=now)
    target: Mapped[str] = mapped_column(String(16))
    target_id: Mapped[str] = mapped_column(String(160), index=True)
    other_id: Mapped[str | None] = mapped_column(String(64), index=True)
    voice: Mapped[str] = mapped_column("adapter", String(63))
    version: Mapped[str] = mapped_column(String(80))
    key: Mapped[str] = mapped_column(String(16))
    value: Mapped[Any] = mapped_column(NULLABLE_JSON, nullable=True)
    text: Mapped[str | None] = mapped_column(Text)
    annotator: Mapped[str] = mapped_column(String(120))
    annotator_kind: Mapped[str] = mapped_column(String(8))
    idempotency_key: Mapped[str | None] = mapped_column(String(120))
    supersedes: Mapped[str | None] = mapped_column(String(32), unique=True)
    observed: Mapped[bool] = mapped_column(default=False)


class ReviewRow(Table):
    """An answer in the queue for review: why it is there, and its state: open, accepted, edited or rejected."""

    __tablename__ = "reviews"
    __table_args__ = (Index("ix_reviews_state", "state", "adapter"),)

    completion_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    voice: Mapped[str] = mapped_column("adapter", String(63))
    reason: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16), default="open")
    added_at: Mapped[datetime] = mapped_column(default=now)
    leased_by: Mapped[str | None] = mapped_column(String(120))
    leased_until: Mapped[datetime | None]
    decided_at: Mapped[datetime | None]
    decided_by: Mapped[str | None] = mapped_column(String(120))
    feedback_id: Mapped[str | None] = mapped_column(String(32))


class ConversationRow(Table):
    """A conversation that a tester keeps. `owner` is the name of the key that made it."""

    __tablename__ = "conversations"
    __table_args__ = (Index("ix_conversations_owner_updated", "owner", "updated_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(63))
    title: Mapped[str] = mapped_column(String(200), default="")
    model: Mapped[str | None] = mapped_column(String(80))
    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now)


class TurnRow(Table):
    """One turn of a conversation, after its `parent`. Rows are only ever added, and deleted with their conversation."""

    __tablename__ = "turns"
    __table_args__ = (UniqueConstraint("conversation", "id"),)

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64))
    conversation: Mapped[str] = mapped_column(ForeignKey("conversations.id", ondelete="CASCADE"), index=True)
    parent: Mapped[str | None] = mapped_column(String(64))
    role: Mapped[str] = mapped_column(String(16))
    content: Mapped[str] = mapped_column(Text)
    completion_id: Mapped[str | None] = mapped_column(String(64))
    details: Mapped[dict[str, Any]] = mapped_column(JSON)
    at: Mapped[datetime] = mapped_column(default=now)


class SecretRow(Table):
    """A secret that all replicas share."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[str] = mapped_column(String(64))


class DriftRow(Table):
    """The state of a version's detector, from which any replica continues after a restart."""

    __tablename__ = "drift"

    version: Mapped[str] = mapped_column(String(80), primary_key=True)
    signal: Mapped[str] = mapped_column(String(32), primary_key=True)
    state: Mapped[dict[str, Any]] = mapped_column(JSON)
    at: Mapped[datetime] = mapped_column(default=now)


class ToneSiblingsRow(Table):
    """The versions of other voices that a version's tone classifier was learned with; they stay the same."""

    __tablename__ = "tone_siblings"

    version: Mapped[str] = mapped_column(String(80), primary_key=True)
    siblings: Mapped[list[str]] = mapped_column(JSON)


class DriftAlarmRow(Table):
    """An alarm. It stays active until someone acknowledges it."""

    __tablename__ = "drift_alarms"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    version: Mapped[str] = mapped_column(String(80), index=True)
    signal: Mapped[str] = mapped_column(String(32))
    at: Mapped[datetime] = mapped_column(default=now)
    details: Mapped[dict[str, Any]] = mapped_column(JSON)
    acknowledged_at: Mapped[datetime | None]
    acknowledged_by: Mapped[str | None] = mapped_column(String(120))
