"""The ledger's tables. tenant_id leads every key; no foreign keys, triggers, sequences or functions.

Runs unchanged on plain PostgreSQL and on Citus, distributed by tenant_id.
"""

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
-- One row per tenant: the lock, the running totals, and the mirrors that people read. Decisions read the lots.
-- Only the primary key is indexed and pages keep room, so that updates stay heap-only.
CREATE TABLE tenant_credits (
    tenant_id text NOT NULL CONSTRAINT tenant_credits_pk PRIMARY KEY,
    id text NOT NULL,
    balance bigint NOT NULL DEFAULT 0,  -- mirror: subscription_balance + permanent_balance
    subscription_balance bigint NOT NULL DEFAULT 0
        CONSTRAINT tenant_credits_subscription_never_negative CHECK (subscription_balance >= 0),
    subscription_expires_at timestamptz,  -- the latest moment at which any of it can still be spent or captured
    permanent_balance bigint NOT NULL DEFAULT 0
        CONSTRAINT tenant_credits_permanent_never_negative CHECK (permanent_balance >= 0),
    held bigint NOT NULL DEFAULT 0 CONSTRAINT tenant_credits_held_never_negative CHECK (held >= 0),
    seq bigint NOT NULL DEFAULT 0 CONSTRAINT tenant_credits_seq_never_negative CHECK (seq >= 0),
    last_at timestamptz NOT NULL,
    chain_head bytea NOT NULL,
    next_lot bigint NOT NULL DEFAULT 1,
    state text NOT NULL DEFAULT 'active' CONSTRAINT tenant_credits_state CHECK (state IN ('active', 'frozen')),
    frozen_reason text NOT NULL DEFAULT '',
    entitlements_version bigint NOT NULL DEFAULT 0,
    plan_code text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- One row per lot. `closed` flips when a lot is empty, so that the open ones stay few however long the history.
CREATE TABLE credit_buckets (
    tenant_id text NOT NULL,
    lot bigint NOT NULL,
    id text NOT NULL,
    bucket text NOT NULL CONSTRAINT credit_buckets_bucket CHECK (bucket IN ('subscription', 'permanent')),
    priority smallint NOT NULL,
    granted bigint NOT NULL CONSTRAINT credit_buckets_granted_positive CHECK (granted > 0),
    remaining bigint NOT NULL,
    held bigint NOT NULL DEFAULT 0,
    claimed bigint NOT NULL DEFAULT 0,  -- what a revocation still takes when it returns
    expires_at timestamptz,
    reference_id text NOT NULL,
    grant_transaction_id text NOT NULL,
    closed boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL,
    CONSTRAINT credit_buckets_pk PRIMARY KEY (tenant_id, lot),
    CONSTRAINT credit_buckets_held_within_remaining CHECK (0 <= held AND held <= remaining),
    CONSTRAINT credit_buckets_closed_is_empty CHECK (NOT closed OR remaining = 0),
    CONSTRAINT credit_buckets_claimed_never_negative CHECK (claimed >= 0)
) WITH (fillfactor = 70);
CREATE INDEX credit_buckets_open ON credit_buckets (tenant_id) WHERE NOT closed;
CREATE INDEX credit_buckets_due ON credit_buckets (expires_at, tenant_id) WHERE NOT closed AND expires_at IS NOT NULL;

-- One row per operation, never updated: also its idempotency record. `id` sorts as the operations were decided.
CREATE TABLE credit_transactions (
    tenant_id text NOT NULL,
    id text NOT NULL,
    idempotency_key text NOT NULL,
    fingerprint bytea NOT NULL,
    fingerprint_version smallint NOT NULL,
    kind text NOT NULL CONSTRAINT credit_transactions_kind CHECK (kind IN (
        'grant', 'debit', 'hold', 'capture', 'void', 'lapse', 'expiry', 'refund', 'adjustment', 'revoke', 'restore',
        'extend')),
    amount bigint NOT NULL,  -- signed change of the posted balance: SUM(amount) is the balance
    tx_status text NOT NULL CONSTRAINT credit_transactions_status CHECK (tx_status IN (
        'posted', 'held', 'captured', 'voided', 'expired', 'rejected')),
    reason text NOT NULL,
    description text NOT NULL,
    reference_id text NOT NULL,
    hold_id text NOT NULL,
    refunded_transaction_id text NOT NULL,
    actor text NOT NULL DEFAULT '',
    metadata jsonb NOT NULL,
    answer jsonb NOT NULL,  -- what a repeat is told: the balance then, or the refusal
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT credit_transactions_pk PRIMARY KEY (tenant_id, id),
    CONSTRAINT credit_transactions_once_per_key UNIQUE (tenant_id, idempotency_key),
    CONSTRAINT credit_transactions_rejected_moves_nothing CHECK (tx_status <> 'rejected' OR amount = 0)
);
-- The backstop of "one payment funds once", whatever key it came under.
CREATE UNIQUE INDEX credit_transactions_fund_once ON credit_transactions (tenant_id, kind, reference_id)
    WHERE kind IN ('grant', 'revoke', 'restore') AND tx_status <> 'rejected';
CREATE INDEX credit_transactions_created ON credit_transactions USING brin (created_at);

-- The lines: append-only, gapless per tenant, each chained to the one before it.
CREATE TABLE credit_entries (
    tenant_id text NOT NULL,
    seq bigint NOT NULL,
    transaction_id text NOT NULL,
    lot bigint NOT NULL,
    bucket text NOT NULL,
    kind text NOT NULL,
    d_posted bigint NOT NULL,
    d_held bigint NOT NULL,
    lot_posted_after bigint NOT NULL CONSTRAINT credit_entries_lot_never_negative CHECK (lot_posted_after >= 0),
    lot_held_after bigint NOT NULL CONSTRAINT credit_entries_lot_held_never_negative CHECK (lot_held_after >= 0),
    account_posted_after bigint NOT NULL,
    account_held_after bigint NOT NULL,
    refunded_seq bigint,  -- the line that this one gives back
    at timestamptz NOT NULL,
    hash bytea NOT NULL,
    CONSTRAINT credit_entries_pk PRIMARY KEY (tenant_id, seq)
);
CREATE INDEX credit_entries_lot ON credit_entries (tenant_id, lot, seq);  -- balances as of a past moment
CREATE INDEX credit_entries_refunds ON credit_entries (tenant_id, refunded_seq) WHERE refunded_seq IS NOT NULL;
CREATE INDEX credit_entries_at ON credit_entries USING brin (at);

CREATE TABLE credit_holds (
    tenant_id text NOT NULL,
    id text NOT NULL,
    transaction_id text NOT NULL,
    status text NOT NULL CONSTRAINT credit_holds_status CHECK (status IN ('held', 'captured', 'voided', 'expired')),
    reserved bigint NOT NULL CONSTRAINT credit_holds_reserved_positive CHECK (reserved > 0),
    captured bigint NOT NULL DEFAULT 0,
    released bigint NOT NULL DEFAULT 0,
    open boolean NOT NULL DEFAULT true,
    expires_at timestamptz NOT NULL,
    max_expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT credit_holds_pk PRIMARY KEY (tenant_id, id),
    CONSTRAINT credit_holds_add_up CHECK (captured >= 0 AND released >= 0 AND captured + released <= reserved)
) WITH (fillfactor = 70);
CREATE INDEX credit_holds_due ON credit_holds (expires_at, tenant_id) WHERE open;
CREATE INDEX credit_holds_open ON credit_holds (tenant_id) WHERE open;

CREATE TABLE credit_hold_legs (
    tenant_id text NOT NULL,
    hold_id text NOT NULL,
    leg smallint NOT NULL,
    lot bigint NOT NULL,
    reserved bigint NOT NULL CONSTRAINT credit_hold_legs_reserved_positive CHECK (reserved > 0),
    captured bigint NOT NULL DEFAULT 0,
    released bigint NOT NULL DEFAULT 0,
    CONSTRAINT credit_hold_legs_pk PRIMARY KEY (tenant_id, hold_id, leg),
    CONSTRAINT credit_hold_legs_add_up CHECK (captured >= 0 AND released >= 0 AND captured + released <= reserved)
) WITH (fillfactor = 70);

-- What a tenant may use of each service, as pushed; the version lives in tenant_credits.
CREATE TABLE tenant_services (
    tenant_id text NOT NULL,
    service_code text NOT NULL,
    id text NOT NULL,
    enabled boolean NOT NULL,
    limits jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT tenant_services_pk PRIMARY KEY (tenant_id, service_code)
);

CREATE TABLE tenant_usage (
    tenant_id text NOT NULL,
    limit_key text NOT NULL,
    used bigint NOT NULL CONSTRAINT tenant_usage_never_negative CHECK (used >= 0),
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT tenant_usage_pk PRIMARY KEY (tenant_id, limit_key)
) WITH (fillfactor = 70);

CREATE TABLE grace_periods (
    tenant_id text NOT NULL,
    limit_key text NOT NULL,
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT grace_periods_pk PRIMARY KEY (tenant_id, limit_key)
);
CREATE INDEX grace_periods_due ON grace_periods (expires_at, tenant_id);
"""

GRANTS = """
GRANT UPDATE ON tenant_credits, credit_buckets, credit_holds, credit_hold_legs, tenant_services, tenant_usage,
    grace_periods TO ledger_rw;
GRANT DELETE ON grace_periods TO ledger_rw;
-- Runbook 2a corrects this one mirror; everything else is a transaction of its own.
GRANT UPDATE (balance) ON tenant_credits TO billing_operator;
-- Nobody changes a line, not even the tables' owner.
REVOKE UPDATE, DELETE, TRUNCATE ON credit_entries, credit_transactions FROM ledger_owner;
"""


def upgrade() -> None:
    op.execute(TABLES)
    op.execute(GRANTS)
