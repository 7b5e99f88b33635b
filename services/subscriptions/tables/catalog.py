"""What is for sale."""

from sqlalchemy import BigInteger, Boolean, Column, Integer, PrimaryKeyConstraint, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from services.subscriptions.tables.columns import created_at, metadata, updated_at

plans = Table(
    "plans",
    metadata,
    Column("id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("price_monthly_paise", BigInteger, nullable=False),
    Column("price_yearly_paise", BigInteger, nullable=False),
    Column("yearly_discount_pct", Integer, nullable=False),
    Column("base_credits", BigInteger, nullable=False),
    Column("credit_cadence", Text, nullable=False),
    Column("trial_days", Integer, nullable=False),
    Column("trial_credits", BigInteger, nullable=False),
    Column("seats", BigInteger),
    Column("razorpay_plan_id_monthly", Text),
    Column("razorpay_plan_id_yearly", Text),
    Column("stripe_price_id_monthly", Text),
    Column("stripe_price_id_yearly", Text),
    Column("is_active", Boolean, nullable=False, server_default=text("true")),
    created_at(),
    updated_at(),
    PrimaryKeyConstraint("id", name="plans_pk"),
)

services = Table(
    "services",
    metadata,
    Column("id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("is_active", Boolean, nullable=False, server_default=text("true")),
    created_at(),
    PrimaryKeyConstraint("id", name="services_pk"),
)

service_limits = Table(
    "service_limits",
    metadata,
    Column("service_id", Text, nullable=False),
    Column("limit_key", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("unit", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("grace_seconds", BigInteger, nullable=False),
    Column("is_active", Boolean, nullable=False, server_default=text("true")),
    created_at(),
    PrimaryKeyConstraint("service_id", "limit_key", name="service_limits_pk"),
)

plan_service_limits = Table(
    "plan_service_limits",
    metadata,
    Column("plan_id", Text, nullable=False),
    Column("service_id", Text, nullable=False),
    Column("limit_key", Text, nullable=False),
    Column("value", BigInteger),
    created_at(),
    PrimaryKeyConstraint("plan_id", "service_id", "limit_key", name="plan_service_limits_pk"),
)

credit_packs = Table(
    "credit_packs",
    metadata,
    Column("id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("credits", BigInteger, nullable=False),
    Column("price_paise", BigInteger, nullable=False),
    Column("is_active", Boolean, nullable=False, server_default=text("true")),
    created_at(),
    PrimaryKeyConstraint("id", name="credit_packs_pk"),
)

addon_catalog = Table(
    "addon_catalog",
    metadata,
    Column("id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("service_id", Text, nullable=False),
    Column("limit_key", Text, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("credits", BigInteger, nullable=False),
    Column("period_days", Integer, nullable=False),
    Column("is_active", Boolean, nullable=False, server_default=text("true")),
    created_at(),
    PrimaryKeyConstraint("id", name="addon_catalog_pk"),
)

credit_costs = Table(
    "credit_costs",
    metadata,
    Column("id", Text, nullable=False),
    Column("credits", BigInteger, nullable=False),
    Column("description", Text, nullable=False),
    Column("is_active", Boolean, nullable=False, server_default=text("true")),
    created_at(),
    PrimaryKeyConstraint("id", name="credit_costs_pk"),
)

catalog_versions = Table(
    "catalog_versions",
    metadata,
    Column("id", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("content", JSONB, nullable=False),
    Column("actor", Text, nullable=False),
    created_at(),
    PrimaryKeyConstraint("id", name="catalog_versions_pk"),
)

provider_plans = Table(
    "provider_plans",
    metadata,
    Column("provider_plan_id", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("plan_id", Text, nullable=False),
    Column("billing_cycle", Text, nullable=False),
    Column("amount_paise", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    created_at(),
    PrimaryKeyConstraint("provider_plan_id", name="provider_plans_pk"),
)
