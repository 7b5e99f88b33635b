"""The statements of the triage. The first four are the runbook's, letter by letter."""

PENDING = """
SELECT COUNT(*) AS pending,
       COUNT(*) FILTER (WHERE abandoned_at IS NOT NULL) AS abandoned
FROM billing_reconciliation_queue
WHERE completed_at IS NULL;
"""
FINDINGS = """
SELECT check_type, COUNT(*)
FROM billing_integrity_reports
WHERE resolved_at IS NULL
GROUP BY check_type;
"""
SIGNATURES = """
SELECT endpoint, tenant_id, COUNT(*) AS n
FROM billing_signature_failures
WHERE created_at > NOW() - INTERVAL '1 hour'
GROUP BY endpoint, tenant_id
ORDER BY n DESC
LIMIT 10;
"""
PAST_DUE = """
SELECT tenant_id, past_due_since,
       EXTRACT(epoch FROM NOW() - past_due_since) / 86400 AS days_past_due
FROM subscriptions
WHERE status = 'past_due'
  AND past_due_since < NOW() - INTERVAL '14 days';
"""

# What is owed: how long the oldest waits that could be tried.
OVERDUE = """
SELECT id, tenant_id, task_type, attempts, last_error, next_attempt_at, NOW() - next_attempt_at AS overdue_by
FROM billing_reconciliation_queue
WHERE completed_at IS NULL AND abandoned_at IS NULL AND next_attempt_at < NOW() - INTERVAL '10 minutes'
ORDER BY next_attempt_at
LIMIT 10;
"""
ABANDONED = """
SELECT id, tenant_id, task_type, attempts, last_error, abandoned_at
FROM billing_reconciliation_queue
WHERE abandoned_at IS NOT NULL AND completed_at IS NULL
ORDER BY position
LIMIT 10;
"""
WORST_FINDINGS = """
SELECT id, room, tenant_id, check_type, severity::text, created_at
FROM billing_integrity_reports
WHERE resolved_at IS NULL
ORDER BY billing_integrity_reports.severity DESC, created_at DESC
LIMIT 10;
"""
BACKLOG = """
SELECT COUNT(*) AS waiting, COUNT(*) FILTER (WHERE next_retry_at <= NOW()) AS due,
       MIN(received_at) AS oldest, EXTRACT(epoch FROM NOW() - MIN(received_at)) AS oldest_seconds
FROM webhook_events
WHERE NOT processed;
"""
DEAD_LETTERS = """
SELECT reason, last_error, COUNT(*) AS n, MIN(created_at) AS oldest
FROM webhook_dead_letter_queue
GROUP BY reason, last_error
ORDER BY n DESC
LIMIT 10;
"""
# The ingress knows its business hours, and says so by an alert.
LAST_EVENT = """
SELECT MAX(processed_at) AS last_processed_at, EXTRACT(epoch FROM NOW() - MAX(processed_at)) AS seconds_ago,
       EXISTS (SELECT FROM alerts WHERE key = 'webhooks.silence' AND recovered_at IS NULL) AS silence_alert
FROM processed_payment_events;
"""
JOBS = """
SELECT jobs.name AS job, jobs.schedule, jobs.paused, jobs.created_at,
       (SELECT MAX(scheduled_for) FROM job_runs
        WHERE job = jobs.name AND trigger = 'schedule') AS last_tick,
       run.id AS last_run, run.finished_at AS last_finished_at, run.outcome AS last_outcome, NOW() AS now
FROM jobs
LEFT JOIN LATERAL (SELECT id, finished_at, outcome
                   FROM job_runs
                   WHERE job = jobs.name AND NOT dry_run AND outcome <> 'skipped'
                   ORDER BY id DESC
                   LIMIT 1) AS run ON true
ORDER BY jobs.name;
"""
ALERTS = """
SELECT id, severity, title, tenant_id, created_at, reports
FROM alerts
WHERE recovered_at IS NULL
ORDER BY severity, created_at DESC
LIMIT 50;
"""
FROZEN = """
SELECT tenant_id, frozen_at, frozen_reason
FROM tenant_credits
WHERE state = 'frozen'
ORDER BY tenant_id
LIMIT 50;
"""
PROVIDER = """
SELECT last_error, COUNT(*) AS tasks, MAX(attempts) AS attempts, MIN(created_at) AS oldest
FROM billing_reconciliation_queue
WHERE completed_at IS NULL AND abandoned_at IS NULL AND counterpart = 'provider' AND attempts > 0
GROUP BY last_error
ORDER BY tasks DESC
LIMIT 10;
"""
CHANGES = """
SELECT created_at, room, action, actor_id, tenant_id, metadata ->> 'reason' AS reason
FROM billing_audit_log
WHERE created_at > NOW() - INTERVAL '1 day' AND actor_type = 'operator'
ORDER BY created_at DESC
LIMIT 10;
"""
