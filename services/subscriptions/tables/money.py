"""What was paid, and what it brought."""

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from services.subscriptions.tables.columns import MOMENT, created_at, metadata, updated_at

credit_pack_purchases = Table(
    "credit_pack_purchases",
    metadata,
    Column("id", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("idempotency_key", Text, nullable=False),
    Column("pack_id", Text, nullable=False),
    Column("credits", BigInteger, nullable=False),
    Column("amount_paise", BigInteger, nullable=False),
    Column("tax_paise", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("provider_order_id", Text),
    Column("payment_id", Text),
    Column("paid_at", MOMENT),
    created_at(),
    PrimaryKeyConstraint("id", name="credit_pack_purchases_pk"),
    UniqueConstraint("tenant_id", "idempotency_key", name="credit_pack_purchases_key"),
    UniqueConstraint("provider_order_id", name="credit_pack_purchases_order_once"),
    UniqueConstraint("payment_id", name="credit_pack_purchases_payment_once"),
)

payments = Table(
    "payments",
    metadata,
    Column("id", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("razorpay_subscription_id", Text),
    Column("order_id", Text, nullable=False),
    Column("invoice_id", Text, nullable=False),
    Column("purchase_id", Text),
    Column("plan_id", Text),
    Column("billing_cycle", Text),
    Column("amount_paise", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("amount_refunded_paise", BigInteger, nullable=False, server_default=text("0")),
    Column("status", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("period_start", MOMENT),
    Column("period_end", MOMENT),
    Column("received_at", MOMENT, nullable=False),
    Column("drip_credits", BigInteger),
    created_at(),
    updated_at(),
    PrimaryKeyConstraint("id", name="payments_pk"),
)
Index("payments_tenant", payments.c.tenant_id, payments.c.created_at)
Index("payments_received", payments.c.received_at)
Index("payments_dripping", payments.c.period_end, postgresql_where=text("drip_credits IS NOT NULL"))
Index(
    "payments_subscription",
    payments.c.razorpay_subscription_id,
    postgresql_where=text("razorpay_subscription_id IS NOT NULL"),
)

credit_grants = Table(
    "credit_grants",
    metadata,
    Column("reference_id", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("bucket", Text, nullable=False),
    Column("credits", BigInteger, nullable=False),
    Column("expires_at", MOMENT),
    Column("payment_id", Text),
    Column("period_start", MOMENT),
    Column("period_end", MOMENT),
    created_at(),
    PrimaryKeyConstraint("tenant_id", "reference_id", name="credit_grants_fund_once"),
    UniqueConstraint("id", name="credit_grants_id"),
)
Index("credit_grants_payment", credit_grants.c.payment_id, postgresql_where=text("payment_id IS NOT NULL"))

grant_revocations = Table(
    "grant_revocations",
    metadata,
    Column("reference_id", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("grant_reference_id", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("cause_id", Text, nullable=False),
    Column("credits", BigInteger, nullable=False),
    Column("short", BigInteger),
    Column("restored_at", MOMENT),
    created_at(),
    PrimaryKeyConstraint("tenant_id", "reference_id", name="grant_revocations_once"),
    UniqueConstraint("id", name="grant_revocations_id"),
)
Index("grant_revocations_grant", grant_revocations.c.tenant_id, grant_revocations.c.grant_reference_id)
Index("grant_revocations_cause", grant_revocations.c.tenant_id, grant_revocations.c.cause_id)

invoice_counters = Table(
    "invoice_counters",
    metadata,
    Column("financial_year", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("last_serial", BigInteger, nullable=False),
    created_at(),
    PrimaryKeyConstraint("financial_year", "kind", name="invoice_counters_pk"),
)

invoices = Table(
    "invoices",
    metadata,
    Column("id", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("financial_year", Text, nullable=False),
    Column("serial", BigInteger, nullable=False),
    Column("number", Text, nullable=False),
    Column("payment_id", Text, nullable=False),
    Column("refund_id", Text),
    Column("description", Text, nullable=False),
    Column("sac", Text, nullable=False),
    Column("place_of_supply", Text, nullable=False),
    Column("taxable_paise", BigInteger, nullable=False),
    Column("cgst_paise", BigInteger, nullable=False),
    Column("sgst_paise", BigInteger, nullable=False),
    Column("igst_paise", BigInteger, nullable=False),
    Column("total_paise", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("supplier", JSONB, nullable=False),
    Column("recipient", JSONB, nullable=False),
    Column("period_start", MOMENT),
    Column("period_end", MOMENT),
    Column("issued_at", MOMENT, nullable=False),
    created_at(),
    Column("tax_rate_bps", Integer, nullable=False),
    PrimaryKeyConstraint("id", name="invoices_pk"),
    UniqueConstraint("financial_year", "kind", "serial", name="invoices_consecutive"),
    UniqueConstraint("number", name="invoices_number"),
)
Index(
    "invoices_payment_once", invoices.c.payment_id, unique=True, postgresql_where=text("kind = 'tax_invoice'")
)
Index(
    "invoices_refund_once", invoices.c.refund_id, unique=True, postgresql_where=text("refund_id IS NOT NULL")
)
Index("invoices_tenant", invoices.c.tenant_id, invoices.c.issued_at)

billing_refunds = Table(
    "billing_refunds",
    metadata,
    Column("id", Text, nullable=False),
    Column("tenant_id", Text),
    Column("payment_id", Text, nullable=False),
    Column("provider_refund_id", Text),
    Column("idempotency_key", Text),
    Column("kind", Text, nullable=False),
    Column("amount_paise", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("credits_revoked", BigInteger, nullable=False, server_default=text("0")),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("processed_at", MOMENT),
    Column("change_id", Text),
    created_at(),
    PrimaryKeyConstraint("id", name="billing_refunds_pk"),
    UniqueConstraint("tenant_id", "idempotency_key", name="billing_refunds_key"),
    UniqueConstraint("provider_refund_id", name="billing_refunds_provider_once"),
)
Index("billing_refunds_payment", billing_refunds.c.payment_id)
Index(
    "billing_refunds_proration_once",
    billing_refunds.c.payment_id,
    billing_refunds.c.change_id,
    unique=True,
    postgresql_where=text("kind = 'proration'"),
)

billing_disputes = Table(
    "billing_disputes",
    metadata,
    Column("id", Text, nullable=False),
    Column("tenant_id", Text),
    Column("payment_id", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("amount_paise", BigInteger, nullable=False),
    Column("amount_deducted_paise", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("credits_revoked", BigInteger, nullable=False, server_default=text("0")),
    Column("observed_at", MOMENT, nullable=False),
    created_at(),
    updated_at(),
    PrimaryKeyConstraint("id", name="billing_disputes_pk"),
)
Index("billing_disputes_payment", billing_disputes.c.payment_id)
Index(
    "billing_disputes_open",
    billing_disputes.c.created_at,
    billing_disputes.c.id,
    postgresql_where=text("status IN ('open', 'under_review')"),
)
