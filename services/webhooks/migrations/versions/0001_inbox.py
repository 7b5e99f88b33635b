"""The inbox of provider events, the queue of those set aside, and the admin requests already answered."""

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
-- One row for each delivery that a provider signed; the 200 follows its commit.
CREATE TABLE webhook_events (
    id text CONSTRAINT webhook_events_pk PRIMARY KEY,
    provider text NOT NULL,
    account_id text NOT NULL,
    mode text NOT NULL CONSTRAINT webhook_events_mode CHECK (mode IN ('live', 'test')),
    event_id text,       -- what an unsigned header said: shown to people, decides nothing
    event_type text,     -- null: the body has none
    tenant_id text,      -- whom it concerned; a guess from the notes until it is processed
    aggregate_id text,   -- the provider's object whose events keep their order while nothing fails
    body bytea NOT NULL, -- card data masked; empty once its retention is over
    body_sha256 text NOT NULL CONSTRAINT webhook_events_sha256 CHECK (body_sha256 ~ '^[0-9a-f]{64}$'),
    masked boolean NOT NULL DEFAULT false,
    body_removed_at timestamptz,
    request_id text NOT NULL,
    received_at timestamptz NOT NULL,
    processed boolean NOT NULL DEFAULT false,
    processed_at timestamptz,
    outcome text CONSTRAINT webhook_events_outcome
        CHECK (outcome IN ('applied', 'duplicate', 'superseded', 'ignored', 'dead')),
    outcome_reason text,
    retry_count integer NOT NULL DEFAULT 0 CONSTRAINT webhook_events_retries CHECK (retry_count >= 0),
    attempt bigint NOT NULL DEFAULT 0, -- the fence: only the newest claim may write what came of it
    next_retry_at timestamptz DEFAULT clock_timestamp(),
    locked_until timestamptz,
    last_error text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT webhook_events_identity UNIQUE (provider, account_id, mode, body_sha256),
    CONSTRAINT webhook_events_done CHECK (processed = (outcome IS NOT NULL)),
    CONSTRAINT webhook_events_due CHECK (processed = (next_retry_at IS NULL))
);
CREATE INDEX webhook_events_pending ON webhook_events (next_retry_at) WHERE NOT processed;
CREATE INDEX webhook_events_aggregate ON webhook_events (aggregate_id, received_at, id) WHERE NOT processed;
CREATE INDEX webhook_events_received ON webhook_events (received_at, id);
CREATE INDEX webhook_events_tenant ON webhook_events (tenant_id, received_at);
CREATE INDEX webhook_events_event_id ON webhook_events (event_id);
CREATE INDEX webhook_events_bodies ON webhook_events (processed_at) WHERE processed AND body_removed_at IS NULL;

-- What waits for a person. Requeued or discarded rows leave; the audit log remembers them.
CREATE TABLE webhook_dead_letter_queue (
    id text CONSTRAINT webhook_dead_letter_queue_pk PRIMARY KEY,
    webhook_event_id text NOT NULL CONSTRAINT webhook_dead_letter_queue_event UNIQUE,
    tenant_id text,
    event_id text,
    event_type text,
    reason text NOT NULL,
    last_error text,
    retry_count integer NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX webhook_dead_letter_queue_created ON webhook_dead_letter_queue (created_at, id);
CREATE INDEX webhook_dead_letter_queue_tenant ON webhook_dead_letter_queue (tenant_id, created_at);

-- Answers of admin requests by their key: a repeat gets the first answer.
CREATE TABLE webhook_admin_requests (
    idempotency_key text CONSTRAINT webhook_admin_requests_pk PRIMARY KEY,
    request jsonb NOT NULL,
    answer jsonb,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX webhook_admin_requests_created ON webhook_admin_requests (created_at);
"""

GRANTS = """
GRANT UPDATE (tenant_id, body, body_removed_at, processed, processed_at, outcome, outcome_reason, retry_count,
    attempt, next_retry_at, locked_until, last_error) ON webhook_events TO webhooks_rw;
GRANT DELETE ON webhook_events, webhook_dead_letter_queue, webhook_admin_requests TO webhooks_rw;
GRANT UPDATE (answer) ON webhook_admin_requests TO webhooks_rw;
"""


def upgrade() -> None:
    """Create the tables, then grant what changes after an insert."""
    op.execute(TABLES)
    op.execute(GRANTS)
