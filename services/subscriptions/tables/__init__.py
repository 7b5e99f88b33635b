"""The tables of the room; the migrations are the truth, a test compares."""

from services.subscriptions.tables.catalog import (
    addon_catalog,
    catalog_versions,
    credit_costs,
    credit_packs,
    plan_service_limits,
    plans,
    provider_plans,
    service_limits,
    services,
)
from services.subscriptions.tables.columns import metadata
from services.subscriptions.tables.money import (
    billing_disputes,
    billing_refunds,
    credit_grants,
    credit_pack_purchases,
    grant_revocations,
    invoice_counters,
    invoices,
    payments,
)
from services.subscriptions.tables.standing import (
    billing_info,
    checkout_intents,
    provider_subscriptions,
    subscriptions,
    tenant_addons,
    tenant_overrides,
)
from services.subscriptions.tables.work import (
    billing_notifications,
    billing_reconciliation_queue,
    idempotency_keys,
    processed_payment_events,
    walks,
)

__all__ = [
    "addon_catalog",
    "billing_disputes",
    "billing_info",
    "billing_notifications",
    "billing_reconciliation_queue",
    "billing_refunds",
    "catalog_versions",
    "checkout_intents",
    "credit_costs",
    "credit_grants",
    "credit_pack_purchases",
    "credit_packs",
    "grant_revocations",
    "idempotency_keys",
    "invoice_counters",
    "invoices",
    "metadata",
    "payments",
    "plan_service_limits",
    "plans",
    "processed_payment_events",
    "provider_plans",
    "provider_subscriptions",
    "service_limits",
    "services",
    "subscriptions",
    "tenant_addons",
    "tenant_overrides",
    "walks",
]
