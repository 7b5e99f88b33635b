"""Where tenants stand and what they began to buy."""

from sqlalchemy import (
    BigInteger,
    Boolean,
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

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("tenant_id", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("plan_id", Text, nullable=False),
    Column("billing_cycle", Text),
    Column("status", Text, nullable=False),
    Column("current_period_start", MOMENT),
    Column("current_period_end", MOMENT),
    Column("has_used_trial", Boolean, nullable=False, server_default=text("false")),
    Column("trial_end", MOMENT),
    Column("cancel_at_period_end", Boolean, nullable=False, server_default=text("false")),
    Column("razorpay_subscription_id", Text),
    Column("razorpay_customer_id", Text),
    Column("pending_plan_id", Text),
    Column("pending_billing_cycle", Text),
    Column("pending_razorpay_subscription_id", Text),
    Column("pending_kind", Text),
    Column("pending_since", MOMENT),
    Column("pending_effective_at", MOMENT),
    Column("catalog_version", Text, nullable=False, server_default=text("''")),
    Column("past_due_since", MOMENT),
    Column("entitlements_version", BigInteger, nullable=False, server_default=text("0")),
    Column("entitlements", JSONB, nullable=False, server_default=text("'[]'")),
    created_at(),
    updated_at(),
    PrimaryKeyConstraint("tenant_id", name="subscriptions_one_per_tenant"),
    UniqueConstraint("id", name="subscriptions_id"),
    UniqueConstraint("pending_razorpay_subscription_id", name="subscriptions_pending_razorpay_once"),
    UniqueConstraint("razorpay_subscription_id", name="subscriptions_razorpay_once"),
)
Index(
    "subscriptions_past_due_since",
    subscriptions.c.past_due_since,
    postgresql_where=text("past_due_since IS NOT NULL"),
)
Index("subscriptions_catalog", subscriptions.c.catalog_version)
Index(
    "subscriptions_ending",
    subscriptions.c.current_period_end,
    postgresql_where=text("cancel_at_period_end"),
)
Index(
    "subscriptions_pending_effective",
    subscriptions.c.pending_effective_at,
    postgresql_where=text("pending_effective_at IS NOT NULL"),
)

checkout_intents = Table(
    "checkout_intents",
    metadata,
    Column("id", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("idempotency_key", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("plan_id", Text, nullable=False),
    Column("billing_cycle", Text, nullable=False),
    Column("with_trial", Boolean, nullable=False),
    Column("amount_paise", BigInteger, nullable=False),
    Column("tax_paise", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("first_charge_at", MOMENT),
    Column("provider", Text, nullable=False),
    Column("provider_plan_id", Text),
    Column("provider_subscription_id", Text),
    Column("attempted_at", MOMENT),
    Column("locked_until", MOMENT),
    Column("replaces_subscription_id", Text),
    Column("quoted_at", MOMENT),
    Column("quoted_payment_id", Text),
    created_at(),
    PrimaryKeyConstraint("id", name="checkout_intents_pk"),
    UniqueConstraint("tenant_id", "idempotency_key", name="checkout_intents_key"),
    UniqueConstraint("provider_subscription_id", name="checkout_intents_subscription_once"),
)

provider_subscriptions = Table(
    "provider_subscriptions",
    metadata,
    Column("id", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("intent_id", Text, nullable=False),
    Column("plan_id", Text, nullable=False),
    Column("billing_cycle", Text, nullable=False),
    Column("provider_plan_id", Text, nullable=False),
    Column("purchased_at", MOMENT, nullable=False),
    Column("trial_ends_at", MOMENT),
    Column("status", Text, nullable=False),
    Column("status_paid_count", BigInteger, nullable=False),
    Column("observed_at", MOMENT, nullable=False),
    Column("paid_count", BigInteger, nullable=False),
    Column("current_start", MOMENT),
    Column("current_end", MOMENT),
    Column("charge_at", MOMENT),
    Column("ended_at", MOMENT),
    Column("auth_attempts", BigInteger, nullable=False),
    Column("failing_paid_count", BigInteger, nullable=False),
    Column("failing_since", MOMENT),
    Column("customer_id", Text, nullable=False),
    Column("payment_method", Text, nullable=False),
    Column("released_at", MOMENT),
    Column("released_paid_count", BigInteger, nullable=False, server_default=text("0")),
    Column("starts_at", MOMENT),
    Column("started_at", MOMENT),
    Column("paid_until", MOMENT),
    Column("authorised", Boolean, nullable=False, server_default=text("false")),
    Column("end_requested_at", MOMENT),
    Column("released_by", Text),
    created_at(),
    updated_at(),
    PrimaryKeyConstraint("id", name="provider_subscriptions_pk"),
    UniqueConstraint("intent_id", name="provider_subscriptions_intent_once"),
)
Index("provider_subscriptions_tenant", provider_subscriptions.c.tenant_id)

tenant_addons = Table(
    "tenant_addons",
    metadata,
    Column("id", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("addon_id", Text, nullable=False),
    Column("units", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("period", Integer, nullable=False),
    Column("attempt", Integer, nullable=False, server_default=text("1")),
    Column("next_renewal", MOMENT),
    Column("idempotency_key", Text),
    Column("paused_at", MOMENT),
    Column("charge_credits", BigInteger),
    Column("charge_key", Text),
    created_at(),
    updated_at(),
    PrimaryKeyConstraint("id", name="tenant_addons_pk"),
)
Index(
    "tenant_addons_due",
    tenant_addons.c.next_renewal,
    postgresql_where=text("status = ANY (ARRAY['active', 'canceling'])"),
)
Index(
    "tenant_addons_one_live",
    tenant_addons.c.tenant_id,
    tenant_addons.c.addon_id,
    unique=True,
    postgresql_where=text("status <> 'canceled'"),
)
Index(
    "tenant_addons_key",
    tenant_addons.c.tenant_id,
    tenant_addons.c.idempotency_key,
    unique=True,
    postgresql_where=text("idempotency_key IS NOT NULL"),
)
Index(
    "tenant_addons_charging",
    tenant_addons.c.tenant_id,
    postgresql_where=text("charge_credits IS NOT NULL"),
)
Index(
    "tenant_addons_paused",
    tenant_addons.c.tenant_id,
    postgresql_where=text("status = 'paused'"),
)

tenant_overrides = Table(
    "tenant_overrides",
    metadata,
    Column("id", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("service_id", Text, nullable=False),
    Column("limit_key", Text, nullable=False),
    Column("value", BigInteger),
    Column("expires_at", MOMENT),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("removed_at", MOMENT),
    created_at(),
    PrimaryKeyConstraint("id", name="tenant_overrides_pk"),
)
Index(
    "tenant_overrides_one_live",
    tenant_overrides.c.tenant_id,
    tenant_overrides.c.service_id,
    tenant_overrides.c.limit_key,
    unique=True,
    postgresql_where=text("removed_at IS NULL"),
)
Index(
    "tenant_overrides_expiring",
    tenant_overrides.c.expires_at,
    postgresql_where=text("removed_at IS NULL AND expires_at IS NOT NULL"),
)

billing_info = Table(
    "billing_info",
    metadata,
    Column("tenant_id", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("company_name", Text, nullable=False),
    Column("gstin", Text, nullable=False),
    Column("address_line1", Text, nullable=False),
    Column("address_line2", Text, nullable=False),
    Column("city", Text, nullable=False),
    Column("state_code", Text, nullable=False),
    Column("postal_code", Text, nullable=False),
    Column("country", Text, nullable=False),
    Column("email", Text, nullable=False),
    created_at(),
    updated_at(),
    PrimaryKeyConstraint("tenant_id", name="billing_info_pk"),
    UniqueConstraint("id", name="billing_info_id"),
)
