"""What was decided, what is owed, and first answers."""

from sqlalchemy import (
    BigInteger,
    Column,
    Identity,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from services.subscriptions.tables.columns import MOMENT, created_at, metadata, updated_at

processed_payment_events = Table(
    "processed_payment_events",
    metadata,
    Column("id", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("account_id", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("body_sha256", Text, nullable=False),
    Column("idempotency_key", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("tenant_id", Text),
    Column("razorpay_subscription_id", Text),
    Column("payment_id", Text),
    Column("outcome", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("occurred_at", MOMENT),
    Column("received_at", MOMENT, nullable=False),
    Column("processed_at", MOMENT, nullable=False),
    created_at(),
    Column("decided_again_at", MOMENT),
    PrimaryKeyConstraint("id", name="processed_payment_events_pk"),
    UniqueConstraint("idempotency_key", name="processed_payment_events_key"),
    UniqueConstraint("provider", "account_id", "mode", "body_sha256", name="processed_payment_events_once"),
)
Index("processed_payment_events_event", processed_payment_events.c.event_id)
Index("processed_payment_events_recent", processed_payment_events.c.processed_at)
Index(
    "processed_payment_events_failed",
    processed_payment_events.c.received_at,
    postgresql_where=text("event_type = 'payment.failed'"),
)
Index(
    "processed_payment_events_tenant",
    processed_payment_events.c.tenant_id,
    processed_payment_events.c.processed_at,
)

billing_reconciliation_queue = Table(
    "billing_reconciliation_queue",
    metadata,
    Column("id", Text, nullable=False),
    Column("position", BigInteger, Identity(always=True), nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("task_type", Text, nullable=False),
    Column("counterpart", Text, nullable=False),
    Column("idempotency_key", Text, nullable=False),
    Column("payload", JSONB, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("last_error", Text),
    Column("next_attempt_at", MOMENT, nullable=False),
    Column("locked_until", MOMENT),
    Column("completed_at", MOMENT),
    Column("abandoned_at", MOMENT),
    created_at(),
    PrimaryKeyConstraint("id", name="billing_reconciliation_queue_pk"),
    UniqueConstraint("tenant_id", "idempotency_key", name="billing_reconciliation_queue_once"),
)
Index(
    "billing_reconciliation_queue_due",
    billing_reconciliation_queue.c.next_attempt_at,
    billing_reconciliation_queue.c.position,
    postgresql_where=text("(completed_at IS NULL) AND (abandoned_at IS NULL)"),
)
Index(
    "billing_reconciliation_queue_open",
    billing_reconciliation_queue.c.tenant_id,
    billing_reconciliation_queue.c.counterpart,
    billing_reconciliation_queue.c.position,
    postgresql_where=text("(completed_at IS NULL) AND (abandoned_at IS NULL)"),
)
Index(
    "billing_reconciliation_queue_abandoned",
    billing_reconciliation_queue.c.position,
    postgresql_where=text("(abandoned_at IS NOT NULL) AND (completed_at IS NULL)"),
)
Index("billing_reconciliation_queue_position", billing_reconciliation_queue.c.position)

billing_notifications = Table(
    "billing_notifications",
    metadata,
    Column("id", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("cycle_ref", Text, nullable=False),
    Column("payload", JSONB, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("next_attempt_at", MOMENT, nullable=False, server_default=text("now()")),
    Column("sent_at", MOMENT),
    Column("skipped_at", MOMENT),
    created_at(),
    PrimaryKeyConstraint("id", name="billing_notifications_pk"),
    UniqueConstraint("tenant_id", "kind", "cycle_ref", name="billing_notifications_once"),
)
Index(
    "billing_notifications_owed",
    billing_notifications.c.next_attempt_at,
    postgresql_where=text("(sent_at IS NULL) AND (skipped_at IS NULL)"),
)
Index("billing_notifications_recent", billing_notifications.c.created_at, billing_notifications.c.id)
Index(
    "billing_notifications_downgrades",
    billing_notifications.c.created_at,
    billing_notifications.c.id,
    postgresql_where=text("kind = 'auto_downgraded'"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant_id", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("fingerprint", JSONB, nullable=False),
    Column("response", LargeBinary, nullable=False),
    created_at(),
    PrimaryKeyConstraint("tenant_id", "method", "key", name="idempotency_keys_pk"),
)
Index("idempotency_keys_age", idempotency_keys.c.created_at)

walks = Table(
    "walks",
    metadata,
    Column("name", Text, nullable=False),
    Column("place", Text, nullable=False),
    created_at(),
    updated_at(),
    PrimaryKeyConstraint("name", name="walks_pk"),
)
