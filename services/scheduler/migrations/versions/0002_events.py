"""Schedules that operators change, alerts that are events or come and go, and how often the sink was told."""

from alembic import op

revision = "0002"
down_revision = "0001"

# What is added has a default or may be absent: the release before this one goes on writing these tables.
CHANGES = """
ALTER TABLE jobs ADD COLUMN ticks_from timestamptz;

ALTER TABLE alerts
    ADD COLUMN is_event boolean NOT NULL DEFAULT false,
    ADD COLUMN flaps integer NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX alerts_one_event ON alerts (source, key) WHERE is_event;
CREATE INDEX alerts_of_key ON alerts (source, key, recovered_at);
CREATE INDEX alerts_of_tenant ON alerts (tenant_id, id);
CREATE INDEX alerts_told_of_later ON alerts ((coalesce(recovered_at, last_reported_at)))
    WHERE recovered_at IS NULL OR (NOT is_event AND sent <> 'recovery') OR (is_event AND sent = 'nothing');

CREATE INDEX job_runs_succeeded ON job_runs (job, finished_at) WHERE outcome = 'succeeded' AND NOT dry_run;
CREATE INDEX operator_requests_created ON operator_requests (created_at);

CREATE TABLE sink_posts (
    id text CONSTRAINT sink_posts_pk PRIMARY KEY,
    alerts integer NOT NULL,
    posted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX sink_posts_posted ON sink_posts (posted_at);
"""

GRANTS = """
GRANT UPDATE (schedule, deadline_seconds, ticks_from) ON jobs TO scheduler_rw;
GRANT UPDATE (flaps) ON alerts TO scheduler_rw;
GRANT DELETE ON sink_posts TO scheduler_rw;
"""


def upgrade() -> None:
    """Add the columns, and say what the scheduler may change of them."""
    op.execute(CHANGES)
    op.execute(GRANTS)
