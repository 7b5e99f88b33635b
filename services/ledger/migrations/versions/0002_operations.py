"""What holds, revocations, limits and freezes need beyond the first tables."""

from alembic import op

revision = "0002"
down_revision = "0001"

TABLES = """
-- Operations that move no credits, one row each: their idempotency records. A key is unique over both tables, since
-- it is looked up in both under the tenant's lock.
CREATE TABLE tenant_operations (
    tenant_id text NOT NULL,
    idempotency_key text NOT NULL,
    kind text NOT NULL CONSTRAINT tenant_operations_kind CHECK (kind IN (
        'consume', 'release', 'set_usage', 'authorize', 'freeze', 'unfreeze')),
    fingerprint bytea NOT NULL,
    fingerprint_version smallint NOT NULL,
    rejected boolean NOT NULL,
    answer jsonb NOT NULL,  -- what a repeat is told
    created_at timestamptz NOT NULL,
    CONSTRAINT tenant_operations_pk PRIMARY KEY (tenant_id, idempotency_key)
);

-- One row for each time a grant was taken back: what it took, and what it still takes when it returns to the lot.
CREATE TABLE credit_revocations (
    tenant_id text NOT NULL,
    reference_id text NOT NULL,
    transaction_id text NOT NULL,
    grant_reference_id text NOT NULL,
    lot bigint NOT NULL,
    asked bigint NOT NULL CONSTRAINT credit_revocations_asked_positive CHECK (asked > 0),
    taken bigint NOT NULL,
    claimed bigint NOT NULL,
    restored_transaction_id text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    CONSTRAINT credit_revocations_pk PRIMARY KEY (tenant_id, reference_id),
    CONSTRAINT credit_revocations_add_up CHECK (taken >= 0 AND claimed >= 0 AND taken + claimed <= asked)
);
CREATE INDEX credit_revocations_open ON credit_revocations (tenant_id, lot) WHERE claimed > 0;

-- A capture is booked for what the hold was placed for.
ALTER TABLE credit_holds ADD COLUMN reason text NOT NULL DEFAULT '', ADD COLUMN reference_id text NOT NULL DEFAULT '';
DROP INDEX credit_holds_open;
CREATE INDEX credit_holds_open ON credit_holds (tenant_id, expires_at) WHERE open;
CREATE INDEX credit_holds_lapsed ON credit_holds (tenant_id, expires_at) WHERE status = 'expired';

-- The latest end of any hold on the lot: until then what is held of it can be captured, though the lot has ended.
ALTER TABLE credit_buckets ADD COLUMN pinned_until timestamptz;

ALTER TABLE tenant_credits ADD COLUMN frozen_at timestamptz;

ALTER TABLE grace_periods ADD COLUMN ended boolean NOT NULL DEFAULT false;
DROP INDEX grace_periods_due;
CREATE INDEX grace_periods_due ON grace_periods (expires_at, tenant_id) WHERE NOT ended;
"""

GRANTS = """
GRANT UPDATE (taken, claimed, restored_transaction_id) ON credit_revocations TO ledger_rw;
REVOKE UPDATE, DELETE, TRUNCATE ON tenant_operations FROM ledger_owner;
"""


def upgrade() -> None:
    op.execute(TABLES)
    op.execute(GRANTS)
