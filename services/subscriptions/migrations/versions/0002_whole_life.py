"""A tenant's whole life: changes of plan, refunds and disputes, months that come due, add-ons, tax invoices."""

from alembic import op

revision = "0002"
down_revision = "0001"

STANDING = """
-- When the pending change takes effect; null: once paid.
ALTER TABLE subscriptions
    ADD COLUMN pending_effective_at timestamptz,
    ADD COLUMN catalog_version text NOT NULL DEFAULT '';  -- the catalogue that the entitlements were built from
CREATE INDEX subscriptions_catalog ON subscriptions (catalog_version);
CREATE INDEX subscriptions_ending ON subscriptions (current_period_end) WHERE cancel_at_period_end;
CREATE INDEX subscriptions_pending_effective ON subscriptions (pending_effective_at)
    WHERE pending_effective_at IS NOT NULL;

-- A change of plan keeps the moment and the payment that its quote was computed from.
ALTER TABLE checkout_intents
    ADD COLUMN replaces_subscription_id text,
    ADD COLUMN quoted_at timestamptz,
    ADD COLUMN quoted_payment_id text;

ALTER TABLE provider_subscriptions
    ADD COLUMN starts_at timestamptz,         -- takes over from another one then; null: at once
    ADD COLUMN started_at timestamptz,        -- first moment of its first paid cycle
    ADD COLUMN paid_until timestamptz,        -- end of the newest cycle that is paid
    ADD COLUMN authorised boolean NOT NULL DEFAULT false,  -- the customer has set it up, whatever came later
    ADD COLUMN end_requested_at timestamptz,  -- the provider was told to end it with its cycle
    ADD COLUMN released_by text
        CONSTRAINT provider_subscriptions_released_by CHECK (released_by IN ('cancellation', 'ladder'));
UPDATE provider_subscriptions SET
    authorised = paid_count > 0 OR customer_id <> '' OR status NOT IN ('created', 'expired', 'cancelled'),
    paid_until = CASE WHEN paid_count > 0 AND status NOT IN ('pending', 'halted') THEN current_end END,
    started_at = CASE WHEN paid_count = 1 THEN current_start END;

-- `period` counts the periods that are paid, so the one to be charged is the next.
ALTER TABLE tenant_addons
    ADD COLUMN idempotency_key text,
    ADD COLUMN paused_at timestamptz,
    -- What the charge that is under way costs; null: none is.
    ADD COLUMN charge_credits bigint CONSTRAINT tenant_addons_charge CHECK (charge_credits > 0),
    ADD COLUMN charge_key text,  -- the call that it answers; null: the job's
    DROP CONSTRAINT tenant_addons_period,
    ADD CONSTRAINT tenant_addons_period CHECK (period >= 0),
    DROP CONSTRAINT tenant_addons_status,
    ADD CONSTRAINT tenant_addons_status
        CHECK (status IN ('pending', 'active', 'paused', 'canceling', 'canceled')),
    ADD CONSTRAINT tenant_addons_pending CHECK (status <> 'pending' OR charge_credits IS NOT NULL);
CREATE UNIQUE INDEX tenant_addons_key ON tenant_addons (tenant_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX tenant_addons_charging ON tenant_addons (tenant_id) WHERE charge_credits IS NOT NULL;
CREATE INDEX tenant_addons_paused ON tenant_addons (tenant_id) WHERE status = 'paused';
CREATE INDEX tenant_overrides_expiring ON tenant_overrides (expires_at)
    WHERE removed_at IS NULL AND expires_at IS NOT NULL;
"""

MONEY = """
-- Credits that each month of a dripping year brings; null: the period's credits came at once.
ALTER TABLE payments ADD COLUMN drip_credits bigint CONSTRAINT payments_drip CHECK (drip_credits > 0);
CREATE INDEX payments_dripping ON payments (period_end) WHERE drip_credits IS NOT NULL;
CREATE INDEX payments_subscription ON payments (razorpay_subscription_id)
    WHERE razorpay_subscription_id IS NOT NULL;

-- The time that the credits were paid for; null: none.
ALTER TABLE credit_grants ADD COLUMN period_start timestamptz, ADD COLUMN period_end timestamptz;

-- A refund or dispute may be told before its payment: then nobody's yet.
ALTER TABLE billing_refunds ALTER COLUMN tenant_id DROP NOT NULL, ADD COLUMN change_id text;
CREATE UNIQUE INDEX billing_refunds_proration_once ON billing_refunds (payment_id, change_id)
    WHERE kind = 'proration';
ALTER TABLE billing_disputes ALTER COLUMN tenant_id DROP NOT NULL;

-- Every decision to take credits back: one refund, dispute or change takes once from each grant.
CREATE TABLE grant_revocations (
    reference_id text NOT NULL,
    tenant_id text NOT NULL,
    id text NOT NULL CONSTRAINT grant_revocations_id UNIQUE,
    grant_reference_id text NOT NULL,
    cause text NOT NULL CONSTRAINT grant_revocations_cause CHECK (cause IN ('refund', 'dispute', 'proration')),
    cause_id text NOT NULL,
    credits bigint NOT NULL CONSTRAINT grant_revocations_credits CHECK (credits > 0),
    short bigint,  -- what was spent and could not be taken; null: the ledger has not told yet
    restored_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT grant_revocations_once PRIMARY KEY (tenant_id, reference_id)
);
CREATE INDEX grant_revocations_grant ON grant_revocations (tenant_id, grant_reference_id);
CREATE INDEX grant_revocations_cause ON grant_revocations (tenant_id, cause_id);

-- Rates change; a document keeps the one that it was issued under.
ALTER TABLE invoices
    ADD COLUMN tax_rate_bps integer NOT NULL CONSTRAINT invoices_tax_rate CHECK (tax_rate_bps > 0);

-- The last number given out; its row lock makes numbers consecutive without gaps.
CREATE TABLE invoice_counters (
    financial_year text NOT NULL,
    kind text NOT NULL CONSTRAINT invoice_counters_kind CHECK (kind IN ('tax_invoice', 'credit_note')),
    last_serial bigint NOT NULL CONSTRAINT invoice_counters_serial CHECK (last_serial > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT invoice_counters_pk PRIMARY KEY (financial_year, kind)
);
"""

WALKS = """
-- How far a job came whose time was too short for everything: its next run goes on there.
CREATE TABLE walks (
    name text CONSTRAINT walks_pk PRIMARY KEY,
    place text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
"""

NOTICES = """
-- Never to be sent: a later step of the same ladder was due when it was recorded.
ALTER TABLE billing_notifications ADD COLUMN skipped_at timestamptz;
DROP INDEX billing_notifications_owed;
CREATE INDEX billing_notifications_owed ON billing_notifications (next_attempt_at)
    WHERE sent_at IS NULL AND skipped_at IS NULL;
CREATE INDEX billing_notifications_recent ON billing_notifications (created_at, id);
"""

GRANTS = """
GRANT UPDATE (pending_effective_at) ON subscriptions TO subscriptions_rw, billing_operator;
GRANT UPDATE (catalog_version) ON subscriptions TO subscriptions_rw;
GRANT UPDATE (starts_at, started_at, paid_until, authorised, end_requested_at, released_by)
    ON provider_subscriptions TO subscriptions_rw;
GRANT UPDATE (paused_at, charge_credits, charge_key) ON tenant_addons TO subscriptions_rw;
GRANT UPDATE (tenant_id) ON billing_refunds, billing_disputes TO subscriptions_rw;
GRANT UPDATE (short, restored_at) ON grant_revocations TO subscriptions_rw;
GRANT UPDATE (amount_paise) ON billing_refunds TO subscriptions_rw;
GRANT UPDATE (last_serial) ON invoice_counters TO subscriptions_rw;
GRANT UPDATE (place, updated_at) ON walks TO subscriptions_rw;
"""


def upgrade() -> None:
    """Widen what is there, add what is new, then say who may change it."""
    for statements in (STANDING, MONEY, NOTICES, WALKS, GRANTS):
        op.execute(statements)
