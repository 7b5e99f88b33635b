"""Every SQL statement of the operators' runbooks, as they print it; tests fill in only the <PLACEHOLDERS>."""

import re

STATEMENTS = {
    "runbook_0_1": """
SELECT COUNT(*) AS pending,
       COUNT(*) FILTER (WHERE abandoned_at IS NOT NULL) AS abandoned
FROM billing_reconciliation_queue
WHERE completed_at IS NULL;
""",
    "runbook_0_2": """
SELECT check_type, COUNT(*)
FROM billing_integrity_reports
WHERE resolved_at IS NULL
GROUP BY check_type;
""",
    "runbook_0_3": """
SELECT endpoint, tenant_id, COUNT(*) AS n
FROM billing_signature_failures
WHERE created_at > NOW() - INTERVAL '1 hour'
GROUP BY endpoint, tenant_id
ORDER BY n DESC
LIMIT 10;
""",
    "runbook_0_4": """
SELECT tenant_id, past_due_since,
       EXTRACT(epoch FROM NOW() - past_due_since) / 86400 AS days_past_due
FROM subscriptions
WHERE status = 'past_due'
  AND past_due_since < NOW() - INTERVAL '14 days';
""",
    "runbook_1_2": """
SELECT tenant_id, plan_id, razorpay_subscription_id,
       pending_razorpay_subscription_id, status, created_at, updated_at
FROM subscriptions
WHERE tenant_id = '<TENANT_ID>';
""",
    "runbook_1_3": """
SELECT id, task_type, payload, attempts, last_error, next_attempt_at, abandoned_at
FROM billing_reconciliation_queue
WHERE tenant_id = '<TENANT_ID>'
  AND payload->>'razorpaySubscriptionId' = '<ORPHAN_SUB_ID>';
""",
    "runbook_1_7": """
UPDATE billing_reconciliation_queue
SET completed_at = NOW(), last_error = 'manual_resolve_ticket_<ID>'
WHERE id = '<TASK_ID>';
""",
    "runbook_2_1": """
SELECT id, tenant_id, check_type, severity, observed, created_at
FROM billing_integrity_reports
WHERE resolved_at IS NULL
ORDER BY severity DESC, created_at DESC;
""",
    "runbook_2a_fix": """
BEGIN;
UPDATE tenant_credits
SET balance = CASE
    WHEN subscription_expires_at IS NOT NULL
         AND subscription_expires_at <= NOW() THEN 0
    ELSE subscription_balance
  END + permanent_balance
WHERE tenant_id = '<TENANT_ID>';
-- verify:
SELECT tenant_id, balance, subscription_balance, subscription_expires_at,
       permanent_balance FROM tenant_credits WHERE tenant_id = '<TENANT_ID>';
COMMIT;
""",
    "runbook_2a_resolve": """
UPDATE billing_integrity_reports
SET resolved_at = NOW(), resolved_by = '<YOUR_USERNAME>'
WHERE id = '<REPORT_ID>';
""",
    "runbook_2b": """
SELECT tx_status, COUNT(*), SUM(amount)
FROM credit_transactions
WHERE tenant_id = '<TENANT_ID>'
GROUP BY tx_status;
""",
    "runbook_2c_look": """
SELECT pending_razorpay_subscription_id FROM subscriptions
WHERE tenant_id = '<TENANT_ID>';
""",
    "runbook_2c_fix": """
UPDATE subscriptions
SET pending_plan_id = NULL,
    pending_billing_cycle = NULL,
    pending_razorpay_subscription_id = NULL,
    updated_at = NOW()
WHERE tenant_id = '<TENANT_ID>';
""",
    "runbook_3_1": """
SELECT tenant_id, endpoint, remote_ip, user_agent, payload_id, created_at
FROM billing_signature_failures
WHERE created_at > NOW() - INTERVAL '1 hour'
  AND (tenant_id = '<ALERT_TENANT>' OR endpoint = 'webhook')
ORDER BY created_at DESC
LIMIT 50;
""",
    "runbook_4_1_subscription": """
SELECT tenant_id, plan_id, pending_plan_id, pending_billing_cycle,
       razorpay_subscription_id, pending_razorpay_subscription_id, status
FROM subscriptions WHERE tenant_id = '<TENANT_ID>';
""",
    "runbook_4_1_limits": """
SELECT service_code, limits FROM tenant_services
WHERE tenant_id = '<TENANT_ID>';
""",
    "runbook_4_3": """
SELECT amount, reason, description, created_at
FROM credit_transactions
WHERE tenant_id = '<TENANT_ID>'
  AND created_at > NOW() - INTERVAL '7 days'
ORDER BY created_at DESC;
""",
    # The runbook ends this one in an ellipsis; the rest is what a promotion leaves behind, and one tenant.
    "runbook_4_4_fix": """
UPDATE subscriptions SET plan_id = pending_plan_id,
    pending_plan_id = NULL,
    pending_billing_cycle = NULL,
    pending_razorpay_subscription_id = NULL,
    updated_at = NOW()
WHERE tenant_id = '<TENANT_ID>';
""",
    "runbook_5_1": """
SELECT MAX(processed_at) FROM processed_payment_events;
""",
    "runbook_6_1": """
SELECT kind, cycle_ref, sent_at, payload
FROM billing_notifications
WHERE tenant_id = '<TENANT_ID>'
ORDER BY sent_at DESC
LIMIT 10;
""",
    "runbook_6_3": """
SELECT * FROM billing_notifications
WHERE tenant_id = '<TENANT_ID>' AND kind = 'auto_downgraded';
""",
    "runbook_7_2": """
SELECT amount, reason, description, reference_id, created_at
FROM credit_transactions
WHERE tenant_id = '<TENANT_ID>'
  AND reason LIKE '<SERVICE>%'
  AND created_at > NOW() - INTERVAL '<WINDOW>'
ORDER BY created_at DESC;
""",
    "deployed_tables": """
SELECT table_name FROM information_schema.tables
WHERE table_name IN (
'billing_reconciliation_queue',
'billing_signature_failures',
'billing_integrity_reports',
'billing_notifications',
'rate_limit_buckets'
);
""",
    "deployed_credit_columns": """
SELECT column_name FROM information_schema.columns
WHERE table_name = 'tenant_credits';
""",
    "deployed_pending_columns": """
SELECT column_name FROM information_schema.columns
WHERE table_name = 'subscriptions'
AND column_name IN ('pending_razorpay_subscription_id',
'pending_billing_cycle', 'past_due_since');
""",
    "deployed_first_tick": """
SELECT MAX(processed_at) FROM processed_payment_events;
""",
    # Ours: a quiet first hour has no payment event, but its jobs have run.
    "deployed_job_runs": """
SELECT job, MAX(finished_at) AS last_finished_at,
       COUNT(*) FILTER (WHERE outcome = 'failed') AS failed
FROM job_runs
GROUP BY job
ORDER BY job;
""",
}


def filled(name: str, **values: str) -> str:
    """The statement with its placeholders replaced: each one, and nothing else."""
    statement = STATEMENTS[name]
    for placeholder, value in values.items():
        assert f"<{placeholder}>" in statement, f"{name} has no <{placeholder}>"
        statement = statement.replace(f"<{placeholder}>", value)
    left = re.findall(r"<[A-Z_]+>", statement)
    assert not left, f"{name} still needs {left}"
    return statement
