"""The tables of the schema `webhooks`; the migrations are the truth, a test compares."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()
MOMENT = DateTime(timezone=True)
NOT_PROCESSED = text("NOT processed")

webhook_events = Table(
    "webhook_events",
    metadata,
    Column("id", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("account_id", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("event_id", Text),
    Column("event_type", Text),
    Column("tenant_id", Text),
    Column("aggregate_id", Text),
    Column("body", LargeBinary, nullable=False),
    Column("body_sha256", Text, nullable=False),
    Column("masked", Boolean, nullable=False, server_default=text("false")),
    Column("body_removed_at", MOMENT),
    Column("request_id", Text, nullable=False),
    Column("received_at", MOMENT, nullable=False),
    Column("processed", Boolean, nullable=False, server_default=text("false")),
    Column("processed_at", MOMENT),
    Column("outcome", Text),
    Column("outcome_reason", Text),
    Column("retry_count", Integer, nullable=False, server_default=text("0")),
    Column("attempt", BigInteger, nullable=False, server_default=text("0")),
    Column("next_retry_at", MOMENT, server_default=func.clock_timestamp()),
    Column("locked_until", MOMENT),
    Column("last_error", Text),
    Column("created_at", MOMENT, nullable=False, server_default=func.clock_timestamp()),
    Column("signed_with", Text),
    PrimaryKeyConstraint("id", name="webhook_events_pk"),
    UniqueConstraint("provider", "account_id", "mode", "body_sha256", name="webhook_events_identity"),
    CheckConstraint("mode IN ('live', 'test')", name="webhook_events_mode"),
    CheckConstraint("body_sha256 ~ '^[0-9a-f]{64}$'", name="webhook_events_sha256"),
    CheckConstraint(
        "outcome IN ('applied', 'duplicate', 'superseded', 'ignored', 'dead')", name="webhook_events_outcome"
    ),
    CheckConstraint("retry_count >= 0", name="webhook_events_retries"),
    CheckConstraint("signed_with IN ('current', 'previous')", name="webhook_events_signed_with"),
    CheckConstraint("processed = (outcome IS NOT NULL)", name="webhook_events_done"),
    CheckConstraint("processed = (next_retry_at IS NULL)", name="webhook_events_due"),
)
_event = webhook_events.c
Index("webhook_events_pending", _event.next_retry_at, postgresql_where=NOT_PROCESSED)
Index(
    "webhook_events_aggregate",
    _event.aggregate_id,
    _event.received_at,
    _event.id,
    postgresql_where=NOT_PROCESSED,
)
Index("webhook_events_nameless", _event.aggregate_id, postgresql_where=text("tenant_id IS NULL"))
Index("webhook_events_received", _event.received_at, _event.id)
Index("webhook_events_dead", _event.received_at, _event.id, postgresql_where=text("outcome = 'dead'"))
Index("webhook_events_tenant", _event.tenant_id, _event.received_at)
Index("webhook_events_event_id", _event.event_id)
Index(
    "webhook_events_bodies",
    _event.processed_at,
    postgresql_where=text("processed AND body_removed_at IS NULL"),
)

webhook_dead_letter_queue = Table(
    "webhook_dead_letter_queue",
    metadata,
    Column("id", Text, nullable=False),
    Column("webhook_event_id", Text, nullable=False),
    Column("tenant_id", Text),
    Column("event_id", Text),
    Column("event_type", Text),
    Column("reason", Text, nullable=False),
    Column("last_error", Text),
    Column("retry_count", Integer, nullable=False),
    Column("created_at", MOMENT, nullable=False),
    PrimaryKeyConstraint("id", name="webhook_dead_letter_queue_pk"),
    UniqueConstraint("webhook_event_id", name="webhook_dead_letter_queue_event"),
)
_letter = webhook_dead_letter_queue.c
Index("webhook_dead_letter_queue_created", _letter.created_at, _letter.id)
Index("webhook_dead_letter_queue_tenant", _letter.tenant_id, _letter.created_at)

webhook_admin_requests = Table(
    "webhook_admin_requests",
    metadata,
    Column("idempotency_key", Text, nullable=False),
    Column("request", JSONB, nullable=False),
    Column("answer", JSONB),
    Column("created_at", MOMENT, nullable=False, server_default=func.clock_timestamp()),
    PrimaryKeyConstraint("idempotency_key", name="webhook_admin_requests_pk"),
)
Index("webhook_admin_requests_created", webhook_admin_requests.c.created_at)
