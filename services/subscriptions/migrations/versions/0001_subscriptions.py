"""Everything the room keeps: the catalogue, tenants' standing, purchases, the mirror of payments, what is owed.

Append-only is the default: each UPDATE and DELETE that the service needs is granted by name at the end.
"""

from alembic import op

revision = "0001"
down_revision = None

CATALOG = """
CREATE TABLE plans (
    id text CONSTRAINT plans_pk PRIMARY KEY,
    name text NOT NULL,
    position integer NOT NULL,
    price_monthly_paise bigint NOT NULL CONSTRAINT plans_price_monthly CHECK (price_monthly_paise >= 0),
    price_yearly_paise bigint NOT NULL CONSTRAINT plans_price_yearly CHECK (price_yearly_paise >= 0),
    yearly_discount_pct integer NOT NULL CONSTRAINT plans_discount CHECK (yearly_discount_pct BETWEEN 0 AND 100),
    base_credits bigint NOT NULL CONSTRAINT plans_base_credits CHECK (base_credits >= 0),
    credit_cadence text NOT NULL CONSTRAINT plans_cadence CHECK (credit_cadence IN ('per_cycle', 'monthly')),
    trial_days integer NOT NULL CONSTRAINT plans_trial_days CHECK (trial_days >= 0),
    trial_credits bigint NOT NULL CONSTRAINT plans_trial_credits CHECK (trial_credits >= 0),
    seats bigint,  -- null: unlimited; repeats the limit platform.seats for people
    razorpay_plan_id_monthly text,
    razorpay_plan_id_yearly text,
    stripe_price_id_monthly text,
    stripe_price_id_yearly text,
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE services (
    id text CONSTRAINT services_pk PRIMARY KEY,
    name text NOT NULL,
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE service_limits (
    service_id text NOT NULL,
    limit_key text NOT NULL,
    name text NOT NULL,
    unit text NOT NULL,
    kind text NOT NULL CONSTRAINT service_limits_kind CHECK (kind IN ('hard', 'soft')),
    grace_seconds bigint NOT NULL CONSTRAINT service_limits_grace CHECK (grace_seconds >= 0),
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT service_limits_pk PRIMARY KEY (service_id, limit_key)
);
CREATE TABLE plan_service_limits (
    plan_id text NOT NULL,
    service_id text NOT NULL,
    limit_key text NOT NULL,
    value bigint CONSTRAINT plan_service_limits_value CHECK (value >= 0),  -- null: unlimited
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT plan_service_limits_pk PRIMARY KEY (plan_id, service_id, limit_key)
);
CREATE TABLE credit_packs (
    id text CONSTRAINT credit_packs_pk PRIMARY KEY,
    name text NOT NULL,
    position integer NOT NULL,
    credits bigint NOT NULL CONSTRAINT credit_packs_credits CHECK (credits > 0),
    price_paise bigint NOT NULL CONSTRAINT credit_packs_price CHECK (price_paise >= 100),  -- tax included
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE addon_catalog (
    id text CONSTRAINT addon_catalog_pk PRIMARY KEY,
    name text NOT NULL,
    service_id text NOT NULL,
    limit_key text NOT NULL,
    quantity bigint NOT NULL CONSTRAINT addon_catalog_quantity CHECK (quantity > 0),
    credits bigint NOT NULL CONSTRAINT addon_catalog_credits CHECK (credits > 0),
    period_days integer NOT NULL CONSTRAINT addon_catalog_period CHECK (period_days > 0),
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE credit_costs (
    id text CONSTRAINT credit_costs_pk PRIMARY KEY,
    credits bigint NOT NULL CONSTRAINT credit_costs_credits CHECK (credits >= 0),
    description text NOT NULL,
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
);
-- What was for sale when: one row per applied difference.
CREATE TABLE catalog_versions (
    id text CONSTRAINT catalog_versions_pk PRIMARY KEY,
    version text NOT NULL,
    content jsonb NOT NULL,
    actor text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
-- The provider's plans can be neither changed nor deleted, and old subscriptions keep theirs.
CREATE TABLE provider_plans (
    provider_plan_id text CONSTRAINT provider_plans_pk PRIMARY KEY,
    provider text NOT NULL,
    plan_id text NOT NULL,
    billing_cycle text NOT NULL CONSTRAINT provider_plans_cycle CHECK (billing_cycle IN ('monthly', 'yearly')),
    amount_paise bigint NOT NULL CONSTRAINT provider_plans_amount CHECK (amount_paise > 0),  -- tax included
    currency text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
"""

STANDING = """
CREATE TABLE subscriptions (
    tenant_id text CONSTRAINT subscriptions_one_per_tenant PRIMARY KEY,
    id text NOT NULL CONSTRAINT subscriptions_id UNIQUE,
    plan_id text NOT NULL,
    billing_cycle text CONSTRAINT subscriptions_cycle CHECK (billing_cycle IN ('monthly', 'yearly')),
    status text NOT NULL CONSTRAINT subscriptions_status
        CHECK (status IN ('incomplete', 'trialing', 'active', 'past_due', 'paused', 'canceled')),
    current_period_start timestamptz,
    current_period_end timestamptz,
    has_used_trial boolean NOT NULL DEFAULT false,
    trial_end timestamptz,
    cancel_at_period_end boolean NOT NULL DEFAULT false,
    razorpay_subscription_id text CONSTRAINT subscriptions_razorpay_once UNIQUE,
    razorpay_customer_id text,
    -- No CHECK ties these together: the runbooks clear some of them and leave the others.
    pending_plan_id text,
    pending_billing_cycle text
        CONSTRAINT subscriptions_pending_cycle CHECK (pending_billing_cycle IN ('monthly', 'yearly')),
    pending_razorpay_subscription_id text CONSTRAINT subscriptions_pending_razorpay_once UNIQUE,
    pending_kind text CONSTRAINT subscriptions_pending_kind
        CHECK (pending_kind IN ('upgrade', 'downgrade', 'cycle_switch', 'cancellation')),
    pending_since timestamptz,
    past_due_since timestamptz
        CONSTRAINT subscriptions_past_due CHECK (past_due_since IS NULL OR status = 'past_due'),
    entitlements_version bigint NOT NULL DEFAULT 0
        CONSTRAINT subscriptions_entitlements_version CHECK (entitlements_version >= 0),
    entitlements jsonb NOT NULL DEFAULT '[]',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT subscriptions_not_pending_itself
        CHECK (razorpay_subscription_id IS DISTINCT FROM pending_razorpay_subscription_id
               OR razorpay_subscription_id IS NULL)
);
CREATE INDEX subscriptions_past_due_since ON subscriptions (past_due_since) WHERE past_due_since IS NOT NULL;

-- One purchase of a plan; committed before the provider is asked, so that a repeat resumes it.
CREATE TABLE checkout_intents (
    id text CONSTRAINT checkout_intents_pk PRIMARY KEY,
    tenant_id text NOT NULL,
    idempotency_key text NOT NULL,
    kind text NOT NULL CONSTRAINT checkout_intents_kind
        CHECK (kind IN ('checkout', 'upgrade', 'downgrade', 'cycle_switch')),
    plan_id text NOT NULL,
    billing_cycle text NOT NULL CONSTRAINT checkout_intents_cycle CHECK (billing_cycle IN ('monthly', 'yearly')),
    with_trial boolean NOT NULL,
    amount_paise bigint NOT NULL CONSTRAINT checkout_intents_amount CHECK (amount_paise > 0),
    tax_paise bigint NOT NULL CONSTRAINT checkout_intents_tax CHECK (tax_paise >= 0),
    currency text NOT NULL,
    first_charge_at timestamptz,  -- null: at once
    provider text NOT NULL,
    provider_plan_id text,
    provider_subscription_id text CONSTRAINT checkout_intents_subscription_once UNIQUE,
    attempted_at timestamptz,  -- the provider was asked to create it; the answer may be lost
    locked_until timestamptz,  -- by the database's clock: one caller at a time asks the provider
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT checkout_intents_key UNIQUE (tenant_id, idempotency_key)
);

-- All we know of the provider subscriptions that we began: the merge of every snapshot, in any order.
CREATE TABLE provider_subscriptions (
    id text CONSTRAINT provider_subscriptions_pk PRIMARY KEY,
    tenant_id text NOT NULL,
    intent_id text NOT NULL CONSTRAINT provider_subscriptions_intent_once UNIQUE,
    plan_id text NOT NULL,
    billing_cycle text NOT NULL
        CONSTRAINT provider_subscriptions_cycle CHECK (billing_cycle IN ('monthly', 'yearly')),
    provider_plan_id text NOT NULL,
    purchased_at timestamptz NOT NULL,
    trial_ends_at timestamptz,
    status text NOT NULL CONSTRAINT provider_subscriptions_status CHECK (status IN ('created', 'authenticated',
        'active', 'pending', 'halted', 'paused', 'cancelled', 'completed', 'expired')),
    status_paid_count bigint NOT NULL,
    observed_at timestamptz NOT NULL,
    paid_count bigint NOT NULL CONSTRAINT provider_subscriptions_paid CHECK (paid_count >= 0),
    current_start timestamptz,
    current_end timestamptz,
    charge_at timestamptz,
    ended_at timestamptz,
    auth_attempts bigint NOT NULL,
    failing_paid_count bigint NOT NULL,
    failing_since timestamptz,
    customer_id text NOT NULL,
    payment_method text NOT NULL,
    released_at timestamptz,
    released_paid_count bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX provider_subscriptions_tenant ON provider_subscriptions (tenant_id);

CREATE TABLE tenant_addons (
    id text CONSTRAINT tenant_addons_pk PRIMARY KEY,
    tenant_id text NOT NULL,
    addon_id text NOT NULL,
    units integer NOT NULL CONSTRAINT tenant_addons_units CHECK (units > 0),
    status text NOT NULL CONSTRAINT tenant_addons_status CHECK (status IN ('active', 'paused', 'canceling', 'canceled')),
    period integer NOT NULL CONSTRAINT tenant_addons_period CHECK (period >= 1),
    attempt integer NOT NULL DEFAULT 1 CONSTRAINT tenant_addons_attempt CHECK (attempt >= 1),
    next_renewal timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX tenant_addons_one_live ON tenant_addons (tenant_id, addon_id) WHERE status <> 'canceled';
CREATE INDEX tenant_addons_due ON tenant_addons (next_renewal) WHERE status IN ('active', 'canceling');

CREATE TABLE tenant_overrides (
    id text CONSTRAINT tenant_overrides_pk PRIMARY KEY,
    tenant_id text NOT NULL,
    service_id text NOT NULL,
    limit_key text NOT NULL,
    value bigint CONSTRAINT tenant_overrides_value CHECK (value >= 0),  -- null: unlimited
    expires_at timestamptz,
    reason text NOT NULL,
    actor text NOT NULL,
    removed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX tenant_overrides_one_live ON tenant_overrides (tenant_id, service_id, limit_key)
    WHERE removed_at IS NULL;

CREATE TABLE billing_info (
    tenant_id text CONSTRAINT billing_info_pk PRIMARY KEY,
    id text NOT NULL CONSTRAINT billing_info_id UNIQUE,
    company_name text NOT NULL,
    gstin text NOT NULL,
    address_line1 text NOT NULL,
    address_line2 text NOT NULL,
    city text NOT NULL,
    state_code text NOT NULL,
    postal_code text NOT NULL,
    country text NOT NULL,
    email text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
"""

MONEY = """
-- One purchase of credits; committed before the provider is asked. Its id is the order's receipt.
CREATE TABLE credit_pack_purchases (
    id text CONSTRAINT credit_pack_purchases_pk PRIMARY KEY,
    tenant_id text NOT NULL,
    idempotency_key text NOT NULL,
    pack_id text NOT NULL,
    credits bigint NOT NULL CONSTRAINT credit_pack_purchases_credits CHECK (credits > 0),
    amount_paise bigint NOT NULL CONSTRAINT credit_pack_purchases_amount CHECK (amount_paise >= 100),
    tax_paise bigint NOT NULL CONSTRAINT credit_pack_purchases_tax CHECK (tax_paise >= 0),
    currency text NOT NULL,
    provider text NOT NULL,
    provider_order_id text CONSTRAINT credit_pack_purchases_order_once UNIQUE,
    payment_id text CONSTRAINT credit_pack_purchases_payment_once UNIQUE,
    paid_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT credit_pack_purchases_key UNIQUE (tenant_id, idempotency_key)
);

-- The mirror of what customers paid.
CREATE TABLE payments (
    id text CONSTRAINT payments_pk PRIMARY KEY,
    tenant_id text NOT NULL,
    provider text NOT NULL,
    purpose text NOT NULL CONSTRAINT payments_purpose CHECK (purpose IN ('plan_cycle', 'credit_pack')),
    razorpay_subscription_id text,
    order_id text NOT NULL,
    invoice_id text NOT NULL,
    purchase_id text,
    plan_id text,
    billing_cycle text CONSTRAINT payments_cycle CHECK (billing_cycle IN ('monthly', 'yearly')),
    amount_paise bigint NOT NULL CONSTRAINT payments_amount CHECK (amount_paise >= 0),
    currency text NOT NULL,
    amount_refunded_paise bigint NOT NULL DEFAULT 0
        CONSTRAINT payments_refunded CHECK (amount_refunded_paise BETWEEN 0 AND amount_paise),
    status text NOT NULL CONSTRAINT payments_status CHECK (status IN ('captured', 'refunded')),
    method text NOT NULL,
    period_start timestamptz,
    period_end timestamptz,
    received_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT payments_subscription CHECK ((purpose = 'plan_cycle') = (razorpay_subscription_id IS NOT NULL)),
    CONSTRAINT payments_purchase CHECK ((purpose = 'credit_pack') = (purchase_id IS NOT NULL))
);
CREATE INDEX payments_tenant ON payments (tenant_id, created_at);

-- Every decision to create credits: one fact funds once.
CREATE TABLE credit_grants (
    reference_id text NOT NULL,
    tenant_id text NOT NULL,
    id text NOT NULL CONSTRAINT credit_grants_id UNIQUE,
    kind text NOT NULL CONSTRAINT credit_grants_kind
        CHECK (kind IN ('plan.cycle', 'plan.month', 'trial', 'free_month', 'credit_pack')),
    bucket text NOT NULL CONSTRAINT credit_grants_bucket CHECK (bucket IN ('subscription', 'permanent')),
    credits bigint NOT NULL CONSTRAINT credit_grants_credits CHECK (credits > 0),
    expires_at timestamptz,
    payment_id text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT credit_grants_fund_once PRIMARY KEY (tenant_id, reference_id),
    CONSTRAINT credit_grants_expiry CHECK ((bucket = 'subscription') = (expires_at IS NOT NULL))
);
CREATE INDEX credit_grants_payment ON credit_grants (payment_id) WHERE payment_id IS NOT NULL;

CREATE TABLE invoices (
    id text CONSTRAINT invoices_pk PRIMARY KEY,
    tenant_id text NOT NULL,
    kind text NOT NULL CONSTRAINT invoices_kind CHECK (kind IN ('tax_invoice', 'credit_note')),
    financial_year text NOT NULL,
    serial bigint NOT NULL CONSTRAINT invoices_serial CHECK (serial > 0),
    number text NOT NULL CONSTRAINT invoices_number UNIQUE CONSTRAINT invoices_number_form
        CHECK (number ~ '^[A-Z0-9/-]{1,16}$'),
    payment_id text NOT NULL,
    refund_id text,
    description text NOT NULL,
    sac text NOT NULL,
    place_of_supply text NOT NULL,
    taxable_paise bigint NOT NULL,
    cgst_paise bigint NOT NULL,
    sgst_paise bigint NOT NULL,
    igst_paise bigint NOT NULL,
    total_paise bigint NOT NULL,
    currency text NOT NULL,
    supplier jsonb NOT NULL,
    recipient jsonb NOT NULL,
    period_start timestamptz,
    period_end timestamptz,
    issued_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT invoices_consecutive UNIQUE (financial_year, kind, serial),
    CONSTRAINT invoices_adds_up CHECK (taxable_paise + cgst_paise + sgst_paise + igst_paise = total_paise),
    CONSTRAINT invoices_one_kind_of_tax CHECK (igst_paise = 0 OR (cgst_paise = 0 AND sgst_paise = 0))
);
CREATE UNIQUE INDEX invoices_payment_once ON invoices (payment_id) WHERE kind = 'tax_invoice';
CREATE UNIQUE INDEX invoices_refund_once ON invoices (refund_id) WHERE refund_id IS NOT NULL;
CREATE INDEX invoices_tenant ON invoices (tenant_id, issued_at);

CREATE TABLE billing_refunds (
    id text CONSTRAINT billing_refunds_pk PRIMARY KEY,
    tenant_id text NOT NULL,
    payment_id text NOT NULL,
    provider_refund_id text CONSTRAINT billing_refunds_provider_once UNIQUE,
    idempotency_key text,  -- null: begun at the provider
    kind text NOT NULL CONSTRAINT billing_refunds_kind CHECK (kind IN ('refund', 'proration')),
    amount_paise bigint NOT NULL CONSTRAINT billing_refunds_amount CHECK (amount_paise > 0),
    currency text NOT NULL,
    status text NOT NULL CONSTRAINT billing_refunds_status CHECK (status IN ('pending', 'processed', 'failed')),
    credits_revoked bigint NOT NULL DEFAULT 0 CONSTRAINT billing_refunds_credits CHECK (credits_revoked >= 0),
    reason text NOT NULL,
    actor text NOT NULL,
    processed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT billing_refunds_key UNIQUE (tenant_id, idempotency_key)
);
CREATE INDEX billing_refunds_payment ON billing_refunds (payment_id);

CREATE TABLE billing_disputes (
    id text CONSTRAINT billing_disputes_pk PRIMARY KEY,
    tenant_id text NOT NULL,
    payment_id text NOT NULL,
    phase text NOT NULL,
    status text NOT NULL CONSTRAINT billing_disputes_status
        CHECK (status IN ('open', 'under_review', 'won', 'lost', 'closed')),
    amount_paise bigint NOT NULL CONSTRAINT billing_disputes_amount CHECK (amount_paise >= 0),
    amount_deducted_paise bigint NOT NULL CONSTRAINT billing_disputes_deducted CHECK (amount_deducted_paise >= 0),
    currency text NOT NULL,
    credits_revoked bigint NOT NULL DEFAULT 0 CONSTRAINT billing_disputes_credits CHECK (credits_revoked >= 0),
    observed_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX billing_disputes_payment ON billing_disputes (payment_id);
"""

WORK = """
CREATE TABLE processed_payment_events (
    id text CONSTRAINT processed_payment_events_pk PRIMARY KEY,
    provider text NOT NULL,
    account_id text NOT NULL,
    mode text NOT NULL,
    body_sha256 text NOT NULL,
    idempotency_key text NOT NULL CONSTRAINT processed_payment_events_key UNIQUE,
    event_id text NOT NULL,
    event_type text NOT NULL,
    tenant_id text,
    razorpay_subscription_id text,
    payment_id text,
    outcome text NOT NULL CONSTRAINT processed_payment_events_outcome
        CHECK (outcome IN ('applied', 'superseded', 'ignored')),
    reason text NOT NULL,
    occurred_at timestamptz,
    received_at timestamptz NOT NULL,
    processed_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT processed_payment_events_once UNIQUE (provider, account_id, mode, body_sha256)
);
CREATE INDEX processed_payment_events_recent ON processed_payment_events (processed_at);
CREATE INDEX processed_payment_events_tenant ON processed_payment_events (tenant_id, processed_at);
CREATE INDEX processed_payment_events_event ON processed_payment_events (event_id);

-- What is owed to the ledger or the provider; written with its cause, in the same transaction.
CREATE TABLE billing_reconciliation_queue (
    id text CONSTRAINT billing_reconciliation_queue_pk PRIMARY KEY,
    position bigint GENERATED ALWAYS AS IDENTITY,
    tenant_id text NOT NULL,
    task_type text NOT NULL CONSTRAINT billing_reconciliation_queue_type CHECK (task_type IN ('grant_credits',
        'revoke_grant', 'restore_grant', 'push_entitlements', 'cancel_provider_subscription', 'fetch_and_apply',
        'refund_payment')),
    counterpart text NOT NULL
        CONSTRAINT billing_reconciliation_queue_counterpart CHECK (counterpart IN ('ledger', 'provider')),
    idempotency_key text NOT NULL,
    payload jsonb NOT NULL,
    attempts integer NOT NULL DEFAULT 0 CONSTRAINT billing_reconciliation_queue_attempts CHECK (attempts >= 0),
    last_error text,
    next_attempt_at timestamptz NOT NULL,
    locked_until timestamptz,  -- by the database's clock
    completed_at timestamptz,
    abandoned_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT billing_reconciliation_queue_once UNIQUE (tenant_id, idempotency_key)
);
CREATE INDEX billing_reconciliation_queue_due ON billing_reconciliation_queue (next_attempt_at)
    WHERE completed_at IS NULL AND abandoned_at IS NULL;
CREATE INDEX billing_reconciliation_queue_open ON billing_reconciliation_queue (tenant_id, counterpart, position)
    WHERE completed_at IS NULL AND abandoned_at IS NULL;
CREATE INDEX billing_reconciliation_queue_position ON billing_reconciliation_queue (position);

CREATE TABLE billing_notifications (
    id text CONSTRAINT billing_notifications_pk PRIMARY KEY,
    tenant_id text NOT NULL,
    kind text NOT NULL,
    cycle_ref text NOT NULL,
    payload jsonb NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    sent_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT billing_notifications_once UNIQUE (tenant_id, kind, cycle_ref)
);
CREATE INDEX billing_notifications_owed ON billing_notifications (next_attempt_at) WHERE sent_at IS NULL;

-- First answers, so that a repeat returns them.
CREATE TABLE idempotency_keys (
    tenant_id text NOT NULL,  -- empty: the call names none
    method text NOT NULL,
    key text NOT NULL,
    fingerprint jsonb NOT NULL,
    response bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT idempotency_keys_pk PRIMARY KEY (tenant_id, method, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);
"""

SERVICE_GRANTS = """
GRANT UPDATE ON plans, services, service_limits, plan_service_limits, credit_packs, addon_catalog, credit_costs
    TO subscriptions_rw;
GRANT DELETE ON plan_service_limits TO subscriptions_rw;
GRANT UPDATE (plan_id, billing_cycle, status, current_period_start, current_period_end, has_used_trial, trial_end,
    cancel_at_period_end, razorpay_subscription_id, razorpay_customer_id, pending_plan_id, pending_billing_cycle,
    pending_razorpay_subscription_id, pending_kind, pending_since, past_due_since, entitlements_version,
    entitlements, updated_at) ON subscriptions TO subscriptions_rw;
GRANT UPDATE (provider_plan_id, provider_subscription_id, attempted_at, locked_until) ON checkout_intents
    TO subscriptions_rw;
GRANT UPDATE (status, status_paid_count, observed_at, paid_count, current_start, current_end, charge_at, ended_at,
    auth_attempts, failing_paid_count, failing_since, customer_id, payment_method, released_at,
    released_paid_count, updated_at) ON provider_subscriptions TO subscriptions_rw;
GRANT UPDATE (units, status, period, attempt, next_renewal, updated_at) ON tenant_addons TO subscriptions_rw;
GRANT UPDATE (removed_at) ON tenant_overrides TO subscriptions_rw;
GRANT UPDATE (company_name, gstin, address_line1, address_line2, city, state_code, postal_code, country, email,
    updated_at) ON billing_info TO subscriptions_rw;
GRANT UPDATE (provider_order_id, payment_id, paid_at) ON credit_pack_purchases TO subscriptions_rw;
GRANT UPDATE (amount_refunded_paise, status, updated_at) ON payments TO subscriptions_rw;
GRANT UPDATE (provider_refund_id, status, credits_revoked, processed_at) ON billing_refunds TO subscriptions_rw;
GRANT UPDATE (phase, status, amount_paise, amount_deducted_paise, credits_revoked, observed_at, updated_at)
    ON billing_disputes TO subscriptions_rw;
GRANT UPDATE (attempts, last_error, next_attempt_at, locked_until, completed_at, abandoned_at)
    ON billing_reconciliation_queue TO subscriptions_rw;
GRANT UPDATE (attempts, next_attempt_at, sent_at) ON billing_notifications TO subscriptions_rw;
GRANT DELETE ON billing_reconciliation_queue, idempotency_keys TO subscriptions_rw;
"""

# What the runbooks mend by hand, and nothing else.
OPERATOR_GRANTS = """
GRANT UPDATE (completed_at, last_error) ON billing_reconciliation_queue TO billing_operator;
GRANT UPDATE (plan_id, pending_plan_id, pending_billing_cycle, pending_razorpay_subscription_id, pending_kind,
    pending_since, updated_at) ON subscriptions TO billing_operator;
"""


def upgrade() -> None:
    """Create the tables, then what each role may change."""
    for statements in (CATALOG, STANDING, MONEY, WORK, SERVICE_GRANTS, OPERATOR_GRANTS):
        op.execute(statements)
