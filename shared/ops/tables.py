"""The tables of the schema `ops`; the migrations are the truth, a test compares."""

from sqlalchemy import (
    CheckConstraint,
    Column,
    DateTime,
    Enum,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()
MOMENT = DateTime(timezone=True)


def _created_at() -> Column[object]:
    return Column("created_at", MOMENT, nullable=False, server_default=func.now())


billing_integrity_reports = Table(
    "billing_integrity_reports",
    metadata,
    Column("id", Text, nullable=False),
    Column("room", Text, nullable=False),
    Column("tenant_id", Text),
    Column("check_type", Text, nullable=False),
    Column("severity", Enum("warning", "critical", name="finding_severity"), nullable=False),
    Column("observed", JSONB, nullable=False),
    _created_at(),
    Column("resolved_at", MOMENT),
    Column("resolved_by", Text),
    PrimaryKeyConstraint("id", name="billing_integrity_reports_pk"),
)
OPEN_FINDING = text("resolved_at IS NULL")
Index(
    "billing_integrity_reports_one_open",
    billing_integrity_reports.c.room,
    billing_integrity_reports.c.check_type,
    billing_integrity_reports.c.tenant_id,
    unique=True,
    postgresql_where=OPEN_FINDING,
    postgresql_nulls_not_distinct=True,
)
Index(
    "billing_integrity_reports_tenant",
    billing_integrity_reports.c.tenant_id,
    billing_integrity_reports.c.created_at,
)

billing_signature_failures = Table(
    "billing_signature_failures",
    metadata,
    Column("id", Text, nullable=False),
    Column("room", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("tenant_id", Text),
    Column("remote_ip", Text),
    Column("user_agent", Text),
    Column("payload_id", Text),
    _created_at(),
    Column("path", Text),
    PrimaryKeyConstraint("id", name="billing_signature_failures_pk"),
    CheckConstraint("endpoint IN ('webhook', '/payment/verify')", name="billing_signature_failures_endpoint"),
)
Index("billing_signature_failures_recent", billing_signature_failures.c.created_at)
Index(
    "billing_signature_failures_tenant",
    billing_signature_failures.c.tenant_id,
    billing_signature_failures.c.created_at,
    postgresql_where=text("tenant_id IS NOT NULL"),
)

billing_audit_log = Table(
    "billing_audit_log",
    metadata,
    Column("id", Text, nullable=False),
    Column("room", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("actor_type", Text, nullable=False),
    Column("actor_id", Text, nullable=False),
    Column("tenant_id", Text),
    Column("resource_type", Text, nullable=False),
    Column("resource_id", Text, nullable=False),
    Column("metadata", JSONB, nullable=False),
    Column("request_id", Text),
    _created_at(),
    PrimaryKeyConstraint("id", name="billing_audit_log_pk"),
)
Index("billing_audit_log_tenant", billing_audit_log.c.tenant_id, billing_audit_log.c.created_at)
Index("billing_audit_log_recent", billing_audit_log.c.created_at)

rate_limit_buckets = Table(
    "rate_limit_buckets",
    metadata,
    Column("room", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("tat", MOMENT, nullable=False),
    _created_at(),
    PrimaryKeyConstraint("room", "key", name="rate_limit_buckets_pk"),
)
Index("rate_limit_buckets_tat", rate_limit_buckets.c.tat)
