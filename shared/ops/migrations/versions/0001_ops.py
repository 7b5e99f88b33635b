"""The four tables that several rooms append to.

Row-level security ties each row to the room that wrote it: `room` || '_rw' is the role of its service.
"""

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
CREATE TYPE finding_severity AS ENUM ('warning', 'critical');

CREATE TABLE billing_integrity_reports (
    id text CONSTRAINT billing_integrity_reports_pk PRIMARY KEY,
    room text NOT NULL,
    tenant_id text,
    check_type text NOT NULL,
    severity finding_severity NOT NULL,
    observed jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    resolved_by text
);
CREATE UNIQUE INDEX billing_integrity_reports_one_open
    ON billing_integrity_reports (room, check_type, tenant_id) NULLS NOT DISTINCT WHERE resolved_at IS NULL;
CREATE INDEX billing_integrity_reports_tenant ON billing_integrity_reports (tenant_id, created_at);

CREATE TABLE billing_signature_failures (
    id text CONSTRAINT billing_signature_failures_pk PRIMARY KEY,
    room text NOT NULL,
    endpoint text NOT NULL,
    tenant_id text,
    remote_ip text,
    user_agent text,
    payload_id text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT billing_signature_failures_endpoint CHECK (endpoint IN ('webhook', '/payment/verify'))
);
CREATE INDEX billing_signature_failures_recent ON billing_signature_failures (created_at);

CREATE TABLE billing_audit_log (
    id text CONSTRAINT billing_audit_log_pk PRIMARY KEY,
    room text NOT NULL,
    action text NOT NULL,
    actor_type text NOT NULL,
    actor_id text NOT NULL,
    tenant_id text,
    resource_type text NOT NULL,
    resource_id text NOT NULL,
    metadata jsonb NOT NULL,
    request_id text,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX billing_audit_log_tenant ON billing_audit_log (tenant_id, created_at);
CREATE INDEX billing_audit_log_recent ON billing_audit_log (created_at);

CREATE TABLE rate_limit_buckets (
    room text NOT NULL,
    key text NOT NULL,
    tat timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT rate_limit_buckets_pk PRIMARY KEY (room, key)
);
CREATE INDEX rate_limit_buckets_tat ON rate_limit_buckets (tat);
"""

GRANTS = """
GRANT UPDATE (severity, observed, resolved_at, resolved_by) ON billing_integrity_reports TO ops_rw;
GRANT UPDATE (resolved_at, resolved_by) ON billing_integrity_reports TO billing_operator;
GRANT UPDATE (tat), DELETE ON rate_limit_buckets TO ops_rw;
"""


def upgrade() -> None:
    """Create the tables, then what each role may do with which rows."""
    op.execute(TABLES)
    op.execute(GRANTS)
    for table in (
        "billing_integrity_reports",
        "billing_signature_failures",
        "billing_audit_log",
        "rate_limit_buckets",
    ):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY everybody_reads ON {table} FOR SELECT USING (true)")
        op.execute(
            f"CREATE POLICY own_room_inserts ON {table} FOR INSERT WITH CHECK (current_user = room || '_rw')"
        )
    for table in ("billing_integrity_reports", "rate_limit_buckets"):
        op.execute(
            f"CREATE POLICY own_room_updates ON {table} FOR UPDATE USING (current_user = room || '_rw')"
        )
    op.execute(
        "CREATE POLICY own_room_deletes ON rate_limit_buckets FOR DELETE USING (current_user = room || '_rw')"
    )
    op.execute(
        "CREATE POLICY operator_resolves ON billing_integrity_reports"
        " FOR UPDATE TO billing_operator USING (true)"
    )
