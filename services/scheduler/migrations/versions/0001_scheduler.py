"""Jobs, their runs, the alerts that runs reported, and what operators asked for."""

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
CREATE TABLE jobs (
    name text CONSTRAINT jobs_pk PRIMARY KEY,
    schedule text NOT NULL,
    deadline_seconds integer NOT NULL,
    paused boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT jobs_deadline CHECK (deadline_seconds > 0)
);

CREATE TABLE job_runs (
    id text CONSTRAINT job_runs_pk PRIMARY KEY,
    job text NOT NULL,
    scheduled_for timestamptz NOT NULL,
    trigger text NOT NULL,
    idempotency_key text,
    dry_run boolean NOT NULL,
    owner text NOT NULL,
    fence bigint NOT NULL,
    lease_until timestamptz NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    outcome text,
    summary jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT job_runs_once_per_tick UNIQUE (job, scheduled_for, trigger),
    CONSTRAINT job_runs_key UNIQUE (idempotency_key),
    CONSTRAINT job_runs_trigger CHECK (trigger IN ('schedule', 'manual')),
    CONSTRAINT job_runs_outcome CHECK (outcome IN ('succeeded', 'failed', 'skipped', 'unimplemented')),
    CONSTRAINT job_runs_ended_with_an_outcome CHECK ((finished_at IS NULL) = (outcome IS NULL))
);
CREATE UNIQUE INDEX job_runs_never_overlap ON job_runs (job) WHERE finished_at IS NULL;
CREATE INDEX job_runs_of_job ON job_runs (job, id);
CREATE INDEX job_runs_finished ON job_runs (finished_at);

CREATE TABLE alerts (
    id text CONSTRAINT alerts_pk PRIMARY KEY,
    source text NOT NULL,
    key text NOT NULL,
    severity text NOT NULL,
    title text NOT NULL,
    tenant_id text,
    evidence jsonb NOT NULL,
    reports bigint NOT NULL,
    created_at timestamptz NOT NULL,
    last_reported_at timestamptz NOT NULL,
    recovered_at timestamptz,
    sent text NOT NULL DEFAULT 'nothing',
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT alerts_severity CHECK (severity IN ('warning', 'critical')),
    CONSTRAINT alerts_sent CHECK (sent IN ('nothing', 'warning', 'critical', 'recovery'))
);
CREATE UNIQUE INDEX alerts_one_open ON alerts (source, key) WHERE recovered_at IS NULL;
CREATE INDEX alerts_recovered ON alerts (recovered_at);
CREATE INDEX alerts_unsent ON alerts (next_attempt_at);

CREATE TABLE operator_requests (
    idempotency_key text CONSTRAINT operator_requests_pk PRIMARY KEY,
    request jsonb NOT NULL,
    answer jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
"""

GRANTS = """
GRANT UPDATE (paused, updated_at) ON jobs TO scheduler_rw;
GRANT UPDATE (owner, fence, lease_until, started_at, finished_at, outcome, summary), DELETE
    ON job_runs TO scheduler_rw;
GRANT UPDATE (severity, title, tenant_id, evidence, reports, last_reported_at, recovered_at,
              sent, attempts, next_attempt_at), DELETE ON alerts TO scheduler_rw;
GRANT DELETE ON operator_requests TO scheduler_rw;
"""


def upgrade() -> None:
    """Create the tables and say what the scheduler may change."""
    op.execute(TABLES)
    op.execute(GRANTS)
