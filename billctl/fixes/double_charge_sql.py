"""What runbook 1 looks at."""

OURS = """
SELECT tenant_id, plan_id, razorpay_subscription_id,
       pending_razorpay_subscription_id, status, created_at, updated_at
FROM subscriptions
WHERE tenant_id = %(tenant)s;
"""
TASKS = """
SELECT q.id, q.task_type, q.payload ->> 'razorpaySubscriptionId' AS subscription, q.attempts, q.last_error,
       q.completed_at, q.abandoned_at, p.id IS NOT NULL AS held
FROM billing_reconciliation_queue q
LEFT JOIN provider_subscriptions p ON p.id = q.payload ->> 'razorpaySubscriptionId'
WHERE q.tenant_id = %(tenant)s
  AND q.task_type IN ('cancel_provider_subscription', 'fetch_and_apply', 'refund_payment')
  AND (q.completed_at IS NULL OR q.completed_at > NOW() - INTERVAL '60 days')
ORDER BY q.position
LIMIT 100;
"""
# Given back: by the provider's word, or on its way.
_PAYMENT = """
SELECT p.id, p.razorpay_subscription_id AS subscription, p.plan_id, p.billing_cycle AS cycle, p.amount_paise, p.status,
       GREATEST(p.amount_refunded_paise,
                COALESCE((SELECT SUM(r.amount_paise) FROM billing_refunds r
                          WHERE r.payment_id = p.id AND r.kind <> 'token' AND r.status <> 'failed'), 0)::bigint
       ) AS back_paise,
       EXISTS (SELECT FROM billing_disputes d
               WHERE d.payment_id = p.id AND d.status IN ('open', 'under_review', 'lost')) AS disputed,
       p.period_start::date AS since, p.period_end::date AS until, p.received_at
FROM payments p
WHERE p.tenant_id = %(tenant)s
"""
PAYMENTS = f"""{_PAYMENT.rstrip()}
  AND p.received_at > NOW() - INTERVAL '1 year'
ORDER BY p.received_at DESC
LIMIT 50;
"""
PAYMENT = f"""{_PAYMENT.rstrip()}
  AND p.id = %(payment)s;
"""
# Two captured payments for days that overlap: of one cycle of one subscription, of the same plan, or one that came for
# another subscription when the one relied on was paid already. An upgrade is none of these: it is paid after the old plan,
# and what is being upgraded to is not in force yet; nor is what had ended before the other was bought. One of two is kept:
# what goes back itself, or is disputed, keeps none.
TWICE = """
SELECT p.id, p.razorpay_subscription_id AS subscription, p.plan_id, p.billing_cycle AS cycle, p.amount_paise,
       0 AS back_paise, p.period_start::date AS since, p.period_end::date AS until, p.received_at, MIN(q.id) AS beside
FROM payments p
JOIN subscriptions s USING (tenant_id)
JOIN payments q ON q.tenant_id = p.tenant_id AND q.id <> p.id AND q.purpose = p.purpose AND q.status = 'captured'
    AND p.period_start < q.period_end - INTERVAL '1 day' AND q.period_start < p.period_end - INTERVAL '1 day'
WHERE p.tenant_id = %(tenant)s
  AND p.purpose = 'plan_cycle'
  AND p.status = 'captured'
  AND p.razorpay_subscription_id IS DISTINCT FROM s.pending_razorpay_subscription_id
  AND NOT EXISTS (SELECT FROM provider_subscriptions e
                  WHERE e.id = p.razorpay_subscription_id AND p.received_at < q.received_at
                    AND e.ended_at <= q.received_at)
  AND q.amount_refunded_paise = 0
  AND NOT EXISTS (SELECT FROM billing_refunds r
                  WHERE r.payment_id = q.id AND r.kind <> 'token' AND r.status <> 'failed')
  AND NOT EXISTS (SELECT FROM billing_disputes d
                  WHERE d.payment_id = q.id AND d.status IN ('open', 'under_review', 'lost'))
  AND (
      q.razorpay_subscription_id = s.razorpay_subscription_id
      AND p.razorpay_subscription_id <> s.razorpay_subscription_id
      AND (p.received_at >= q.received_at OR (p.plan_id, p.billing_cycle) = (q.plan_id, q.billing_cycle))
      OR q.razorpay_subscription_id = p.razorpay_subscription_id
      AND (p.received_at, p.id) > (q.received_at, q.id)
  )
  AND p.amount_refunded_paise = 0
  AND NOT EXISTS (SELECT FROM billing_refunds r WHERE r.payment_id = p.id AND r.status <> 'failed')
  AND NOT EXISTS (SELECT FROM billing_disputes d
                  WHERE d.payment_id = p.id AND d.status IN ('open', 'under_review', 'lost'))
GROUP BY p.id
ORDER BY p.received_at;
"""
FINDINGS = """
SELECT id, check_type, severity, observed, created_at
FROM billing_integrity_reports
WHERE tenant_id = %(tenant)s
  AND resolved_at IS NULL
ORDER BY severity DESC, created_at DESC;
"""
