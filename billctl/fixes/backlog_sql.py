"""What runbook 5 looks at."""

INBOX = """
SELECT COUNT(*) FILTER (WHERE NOT processed) AS waiting,
       COUNT(*) FILTER (WHERE NOT processed AND next_retry_at <= NOW()) AS due,
       MIN(received_at) FILTER (WHERE NOT processed) AS oldest,
       EXTRACT(epoch FROM NOW() - MIN(received_at) FILTER (WHERE NOT processed)) AS oldest_seconds,
       (array_agg(last_error) FILTER (WHERE NOT processed AND last_error IS NOT NULL))[1] AS last_error,
       (SELECT MAX(received_at) FROM webhook_events) AS last_received,
       (SELECT MAX(processed_at) FROM processed_payment_events) AS last_decided,
       EXTRACT(epoch FROM NOW() - (SELECT MAX(received_at) FROM webhook_events)) AS quiet_seconds,
       EXTRACT(isodow FROM NOW() AT TIME ZONE 'Asia/Kolkata') < 6
           AND EXTRACT(hour FROM NOW() AT TIME ZONE 'Asia/Kolkata') BETWEEN 10 AND 18 AS in_business_hours
FROM webhook_events
WHERE NOT processed;
"""
LETTERS = """
SELECT reason, last_error, COUNT(*) AS n, MIN(created_at) AS oldest, MAX(created_at) AS newest
FROM webhook_dead_letter_queue
GROUP BY reason, last_error
ORDER BY n DESC;
"""
UNREADABLE = """
SELECT id, reason, last_error, event_id, created_at
FROM webhook_dead_letter_queue
WHERE reason NOT IN ('attempts_exhausted', 'refused')
ORDER BY id
LIMIT 20;
"""
NAMED = """
SELECT id, reason, last_error, event_type, tenant_id, event_id, webhook_event_id, retry_count, created_at
FROM webhook_dead_letter_queue
WHERE id = ANY(%(ids)s)
ORDER BY id;
"""
NEWEST = """
SELECT MAX(id) AS id
FROM webhook_dead_letter_queue
WHERE reason = 'attempts_exhausted';
"""
PORTION = """
SELECT id
FROM webhook_dead_letter_queue
WHERE reason = 'attempts_exhausted' AND id > %(after)s AND id <= %(last)s
ORDER BY id
LIMIT %(portion)s;
"""
# Who took them off the queue is in the audit log alone.
TAKEN = """
SELECT letter ->> 'id' AS id, action, actor_id AS actor, metadata ->> 'reason' AS reason, log.created_at
FROM billing_audit_log AS log
CROSS JOIN LATERAL jsonb_array_elements(metadata -> 'before' -> 'dead_letters') AS letter
WHERE action IN ('webhook.discard', 'webhook.requeue') AND letter ->> 'id' = ANY(%(ids)s)
ORDER BY log.created_at, id;
"""
# Refusals say their address by its last part: that of an account is `/webhooks/razorpay/<account>`.
ENDPOINTS = """
SELECT provider, account_id, mode, COUNT(*) AS stored_last_hour, MAX(received_at) AS newest,
       (SELECT COUNT(*) FROM billing_signature_failures f
        WHERE f.endpoint = 'webhook' AND f.created_at > NOW() - INTERVAL '1 hour') AS refused_last_hour
FROM webhook_events
WHERE received_at > NOW() - INTERVAL '1 hour'
GROUP BY provider, account_id, mode
ORDER BY provider, account_id, mode;
"""
ALERTS = """
SELECT key, severity, title, created_at
FROM alerts
WHERE key LIKE 'webhooks.%'
  AND recovered_at IS NULL
ORDER BY created_at;
"""
IN_RANGE = """
SELECT COUNT(*) AS events, COUNT(*) FILTER (WHERE outcome = 'ignored') AS ignored,
       COUNT(*) FILTER (WHERE outcome = 'dead') AS dead, MIN(received_at) AS first, MAX(received_at) AS last
FROM webhook_events
WHERE received_at >= %(since)s AND received_at < %(until)s
  AND (%(event_type)s = '' OR event_type = %(event_type)s);
"""
LEFT = """
SELECT (SELECT COUNT(*) FROM webhook_events WHERE NOT processed) AS waiting,
       (SELECT COUNT(*) FROM webhook_dead_letter_queue WHERE reason = 'attempts_exhausted') AS dead,
       COALESCE((SELECT MAX(last_error) FROM webhook_dead_letter_queue WHERE reason = 'attempts_exhausted'),
                (SELECT MAX(last_error) FROM webhook_events WHERE NOT processed)) AS last_error;
"""
