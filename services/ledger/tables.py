"""The ledger's tables, for building queries; the migrations are the truth and a test compares the two."""

from sqlalchemy import BigInteger, Boolean, Column, DateTime, LargeBinary, MetaData, SmallInteger, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(schema="ledger")


def _table(name: str, *columns: Column[object], key: tuple[str, ...]) -> Table:
    for column in columns:
        column.primary_key = column.name in key
    return Table(name, metadata, *columns)


def _text(name: str) -> Column[object]:
    return Column(name, Text, nullable=False)


def _number(name: str) -> Column[object]:
    return Column(name, BigInteger, nullable=False)


def _time(name: str, *, nullable: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


tenant_credits = _table(
    "tenant_credits",
    _text("tenant_id"),
    _text("id"),
    _number("balance"),
    _number("subscription_balance"),
    _time("subscription_expires_at", nullable=True),
    _number("permanent_balance"),
    _number("held"),
    _number("seq"),
    _time("last_at"),
    Column("chain_head", LargeBinary, nullable=False),
    _number("next_lot"),
    _text("state"),
    _text("frozen_reason"),
    _number("entitlements_version"),
    _text("plan_code"),
    _time("created_at"),
    _time("frozen_at", nullable=True),
    key=("tenant_id",),
)

credit_buckets = _table(
    "credit_buckets",
    _text("tenant_id"),
    _number("lot"),
    _text("id"),
    _text("bucket"),
    Column("priority", SmallInteger, nullable=False),
    _number("granted"),
    _number("remaining"),
    _number("held"),
    _number("claimed"),
    _time("expires_at", nullable=True),
    _text("reference_id"),
    _text("grant_transaction_id"),
    Column("closed", Boolean, nullable=False),
    _time("created_at"),
    _time("pinned_until", nullable=True),
    key=("tenant_id", "lot"),
)

credit_transactions = _table(
    "credit_transactions",
    _text("tenant_id"),
    _text("id"),
    _text("idempotency_key"),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("fingerprint_version", SmallInteger, nullable=False),
    _text("kind"),
    _number("amount"),
    _text("tx_status"),
    _text("reason"),
    _text("description"),
    _text("reference_id"),
    _text("hold_id"),
    _text("refunded_transaction_id"),
    _text("actor"),
    Column("metadata", JSONB, nullable=False),
    Column("answer", JSONB, nullable=False),
    _number("first_seq"),
    _number("last_seq"),
    _time("created_at"),
    key=("tenant_id", "id"),
)

credit_entries = _table(
    "credit_entries",
    _text("tenant_id"),
    _number("seq"),
    _text("transaction_id"),
    _number("lot"),
    _text("bucket"),
    _text("kind"),
    _number("d_posted"),
    _number("d_held"),
    _number("lot_posted_after"),
    _number("lot_held_after"),
    _number("account_posted_after"),
    _number("account_held_after"),
    Column("refunded_seq", BigInteger),
    _time("at"),
    Column("hash", LargeBinary, nullable=False),
    key=("tenant_id", "seq"),
)

credit_holds = _table(
    "credit_holds",
    _text("tenant_id"),
    _text("id"),
    _text("transaction_id"),
    _text("status"),
    _number("reserved"),
    _number("captured"),
    _number("released"),
    Column("open", Boolean, nullable=False),
    _time("expires_at"),
    _time("max_expires_at"),
    _time("created_at"),
    _text("reason"),
    _text("reference_id"),
    key=("tenant_id", "id"),
)

credit_hold_legs = _table(
    "credit_hold_legs",
    _text("tenant_id"),
    _text("hold_id"),
    Column("leg", SmallInteger, nullable=False),
    _number("lot"),
    _number("reserved"),
    _number("captured"),
    _number("released"),
    key=("tenant_id", "hold_id", "leg"),
)

tenant_services = _table(
    "tenant_services",
    _text("tenant_id"),
    _text("service_code"),
    _text("id"),
    Column("enabled", Boolean, nullable=False),
    Column("limits", JSONB, nullable=False),
    _time("created_at"),
    _time("updated_at"),
    key=("tenant_id", "service_code"),
)

tenant_usage = _table(
    "tenant_usage",
    _text("tenant_id"),
    _text("limit_key"),
    _number("used"),
    _time("created_at"),
    _time("updated_at"),
    key=("tenant_id", "limit_key"),
)

grace_periods = _table(
    "grace_periods",
    _text("tenant_id"),
    _text("limit_key"),
    _time("expires_at"),
    _time("created_at"),
    Column("ended", Boolean, nullable=False),
    key=("tenant_id", "limit_key"),
)

tenant_operations = _table(
    "tenant_operations",
    _text("tenant_id"),
    _text("idempotency_key"),
    _text("kind"),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("fingerprint_version", SmallInteger, nullable=False),
    Column("rejected", Boolean, nullable=False),
    Column("answer", JSONB, nullable=False),
    _time("created_at"),
    key=("tenant_id", "idempotency_key"),
)

credit_revocations = _table(
    "credit_revocations",
    _text("tenant_id"),
    _text("reference_id"),
    _text("transaction_id"),
    _text("grant_reference_id"),
    _number("lot"),
    _number("asked"),
    _number("taken"),
    _number("claimed"),
    _text("restored_transaction_id"),
    _time("created_at"),
    key=("tenant_id", "reference_id"),
)

audit_state = _table(
    "audit_state",
    _text("tenant_id"),
    _number("checked_seq"),
    Column("checked_head", LargeBinary, nullable=False),
    _number("checked_posted"),
    _number("checked_held"),
    _time("checked_at"),
    _number("reread_seq"),
    Column("reread_head", LargeBinary, nullable=False),
    _number("reread_posted"),
    _number("reread_held"),
    _time("reread_at"),
    _time("reread_on"),
    _time("created_at"),
    key=("tenant_id",),
)

audit_progress = _table(
    "audit_progress",
    _text("walk"),
    _text("tenant_id"),
    _time("until", nullable=True),
    _time("updated_at"),
    key=("walk",),
)
