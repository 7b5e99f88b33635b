"""What the auditor has read, so that its next run reads only what is new."""

from alembic import op

revision = "0003"
down_revision = "0002"

TABLES = """
-- Per tenant: how far its lines were checked and what they came to there, and how far they are being read again from
-- the first. Written by the auditor alone, never consulted by an operation.
CREATE TABLE audit_state (
    tenant_id text NOT NULL CONSTRAINT audit_state_pk PRIMARY KEY,
    checked_seq bigint NOT NULL,
    checked_head bytea NOT NULL,  -- the hash of that line: whoever rewrites history cannot rewrite this unnoticed
    checked_posted bigint NOT NULL,
    checked_held bigint NOT NULL,
    checked_at timestamptz NOT NULL,  -- that line's time
    reread_seq bigint NOT NULL,
    reread_head bytea NOT NULL,
    reread_posted bigint NOT NULL,
    reread_held bigint NOT NULL,
    reread_at timestamptz NOT NULL,
    reread_on timestamptz NOT NULL,  -- when all lines were read last
    created_at timestamptz NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX audit_state_reread ON audit_state (reread_on, tenant_id);

-- Where the auditor's walks over all tenants stand; a run that was cut short goes on there.
CREATE TABLE audit_progress (
    walk text NOT NULL CONSTRAINT audit_progress_pk PRIMARY KEY
        CONSTRAINT audit_progress_walk CHECK (walk IN ('tenants', 'transactions')),
    tenant_id text NOT NULL DEFAULT '',  -- the last tenant compared; empty: begin with the first
    until timestamptz,  -- transactions decided before this were looked at
    updated_at timestamptz NOT NULL
);
"""

GRANTS = "GRANT UPDATE ON audit_state, audit_progress TO ledger_rw"


def upgrade() -> None:
    op.execute(TABLES)
    op.execute(GRANTS)
