"""The tables of the scheduler; the migrations are the truth, a test compares."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()
MOMENT = DateTime(timezone=True)
NOT_FINISHED = text("finished_at IS NULL")
NOT_RECOVERED = text("recovered_at IS NULL")
IS_EVENT = text("is_event")
SUCCEEDED = text("outcome = 'succeeded' AND NOT dry_run")
# What the sink may still have to be told of: a query that says it word for word finds it by its index.
TOLD_OF_LATER = text(
    "(recovered_at IS NULL OR (NOT is_event AND sent <> 'recovery') OR (is_event AND sent = 'nothing'))"
)

jobs = Table(
    "jobs",
    metadata,
    Column("name", Text, nullable=False),
    Column("schedule", Text, nullable=False),
    Column("deadline_seconds", Integer, nullable=False),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    Column("created_at", MOMENT, nullable=False, server_default=func.now()),
    Column("updated_at", MOMENT, nullable=False, server_default=func.now()),
    Column("ticks_from", MOMENT),
    PrimaryKeyConstraint("name", name="jobs_pk"),
    CheckConstraint("deadline_seconds > 0", name="jobs_deadline"),
)

job_runs = Table(
    "job_runs",
    metadata,
    Column("id", Text, nullable=False),
    Column("job", Text, nullable=False),
    Column("scheduled_for", MOMENT, nullable=False),
    Column("trigger", Text, nullable=False),
    Column("idempotency_key", Text),
    Column("dry_run", Boolean, nullable=False),
    Column("owner", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("lease_until", MOMENT, nullable=False),
    Column("started_at", MOMENT, nullable=False),
    Column("finished_at", MOMENT),
    Column("outcome", Text),
    Column("summary", JSONB, nullable=False, server_default=text("'{}'")),
    Column("created_at", MOMENT, nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("id", name="job_runs_pk"),
    UniqueConstraint("job", "scheduled_for", "trigger", name="job_runs_once_per_tick"),
    UniqueConstraint("idempotency_key", name="job_runs_key"),
    CheckConstraint("trigger IN ('schedule', 'manual')", name="job_runs_trigger"),
    CheckConstraint(
        "outcome IN ('succeeded', 'failed', 'skipped', 'unimplemented')", name="job_runs_outcome"
    ),
    CheckConstraint("(finished_at IS NULL) = (outcome IS NULL)", name="job_runs_ended_with_an_outcome"),
)
Index("job_runs_never_overlap", job_runs.c.job, unique=True, postgresql_where=NOT_FINISHED)
Index("job_runs_of_job", job_runs.c.job, job_runs.c.id)
Index("job_runs_finished", job_runs.c.finished_at)
Index("job_runs_succeeded", job_runs.c.job, job_runs.c.finished_at, postgresql_where=SUCCEEDED)

alerts = Table(
    "alerts",
    metadata,
    Column("id", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("tenant_id", Text),
    Column("evidence", JSONB, nullable=False),
    Column("reports", BigInteger, nullable=False),
    Column("created_at", MOMENT, nullable=False),
    Column("last_reported_at", MOMENT, nullable=False),
    Column("recovered_at", MOMENT),
    Column("sent", Text, nullable=False, server_default=text("'nothing'")),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("next_attempt_at", MOMENT, nullable=False, server_default=func.now()),
    Column("is_event", Boolean, nullable=False, server_default=text("false")),
    Column("flaps", Integer, nullable=False, server_default=text("0")),
    PrimaryKeyConstraint("id", name="alerts_pk"),
    CheckConstraint("severity IN ('warning', 'critical')", name="alerts_severity"),
    CheckConstraint("sent IN ('nothing', 'warning', 'critical', 'recovery')", name="alerts_sent"),
)
Index("alerts_one_open", alerts.c.source, alerts.c.key, unique=True, postgresql_where=NOT_RECOVERED)
Index("alerts_recovered", alerts.c.recovered_at)
Index("alerts_unsent", alerts.c.next_attempt_at)
Index("alerts_one_event", alerts.c.source, alerts.c.key, unique=True, postgresql_where=IS_EVENT)
Index("alerts_of_key", alerts.c.source, alerts.c.key, alerts.c.recovered_at)
Index("alerts_of_tenant", alerts.c.tenant_id, alerts.c.id)
Index(
    "alerts_told_of_later",
    func.coalesce(alerts.c.recovered_at, alerts.c.last_reported_at),
    postgresql_where=TOLD_OF_LATER,
)

sink_posts = Table(
    "sink_posts",
    metadata,
    Column("id", Text, nullable=False),
    Column("alerts", Integer, nullable=False),
    Column("posted_at", MOMENT, nullable=False, server_default=func.clock_timestamp()),
    PrimaryKeyConstraint("id", name="sink_posts_pk"),
)
Index("sink_posts_posted", sink_posts.c.posted_at)

operator_requests = Table(
    "operator_requests",
    metadata,
    Column("idempotency_key", Text, nullable=False),
    Column("request", JSONB, nullable=False),
    Column("answer", JSONB, nullable=False),
    Column("created_at", MOMENT, nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("idempotency_key", name="operator_requests_pk"),
)
Index("operator_requests_created", operator_requests.c.created_at)
