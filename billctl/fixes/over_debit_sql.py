"""What runbook 7 looks at.

A debit's reason is the action, and its metadata may say the `quantity`; without one a debit is for one. A capture's
quantity is its hold's; without one nobody can tell what it should have cost, for holds are made for work of unknown size.
What says a quantity that is no whole number is not judged either: taken for one it would be given back nearly whole.
"""

# ruff: noqa: S608 - statements share parts that are constants

PUBLISHED = """
SELECT id AS action, credits, description, is_active
FROM credit_costs
WHERE id = %(action)s;
"""
ACTIONS = """
SELECT id AS action
FROM credit_costs
WHERE is_active
ORDER BY id;
"""
# What the catalogue said while the window ran.
WHILE_IT_RAN = """
SELECT version, credits, actor, created_at AS since, until
FROM (
    SELECT id, version, actor, created_at, (content -> 'credit_costs' -> %(action)s ->> 'credits')::bigint AS credits,
           LEAD(created_at) OVER (ORDER BY id) AS until
    FROM catalog_versions
) AS versions
WHERE created_at < %(until)s AND (until IS NULL OR until > %(since)s)
ORDER BY id;
"""
_BOUNDS = """
      AND (%(tenant)s = '' OR t.tenant_id = %(tenant)s)
      AND t.reason = %(action)s
      AND t.kind IN ('debit', 'capture')
      AND t.amount < 0
"""
_WINDOW = f"""(
        SELECT * FROM credit_transactions t
        WHERE t.created_at >= %(since)s AND t.created_at < %(until)s{_BOUNDS}
    )"""
# Refunds are found by the lines that they give back, which are indexed.
_CHARGED = """
    SELECT t.tenant_id, t.id, t.created_at, t.kind, -t.amount AS charged,
           CASE WHEN COALESCE(h.metadata, t.metadata) ->> 'quantity' ~ '^[1-9][0-9]{{0,8}}$'
                THEN (COALESCE(h.metadata, t.metadata) ->> 'quantity')::bigint
                WHEN t.kind = 'debit' AND NOT t.metadata ? 'quantity' THEN 1 END AS quantity,
           COALESCE(back.credits, 0)::bigint AS back
    FROM {source} t
    LEFT JOIN credit_holds o ON t.kind = 'capture' AND o.tenant_id = t.tenant_id AND o.id = t.hold_id
    LEFT JOIN credit_transactions h ON h.tenant_id = o.tenant_id AND h.id = o.transaction_id
    LEFT JOIN LATERAL (
        SELECT SUM(e.d_posted) AS credits
        FROM credit_entries e
        WHERE e.tenant_id = t.tenant_id AND e.refunded_seq BETWEEN t.first_seq AND t.last_seq
    ) AS back ON true
"""
_JUDGED = f"""
WITH charged AS ({_CHARGED.format(source=_WINDOW)}), judged AS (
    SELECT *, GREATEST(charged - quantity * %(cost)s, 0) AS over,
           GREATEST(charged - quantity * %(cost)s - back, 0) AS owed
    FROM charged
)"""
AMOUNTS = f"""{_JUDGED}
SELECT charged, quantity, kind, COUNT(*) AS debits, COUNT(DISTINCT tenant_id) AS tenants, SUM(over) AS over,
       SUM(back) AS given_back, MIN(created_at) AS first, MAX(created_at) AS last
FROM judged
GROUP BY charged, quantity, kind
ORDER BY debits DESC, charged DESC
LIMIT 20;
"""
TOTALS = f"""{_JUDGED}
SELECT COUNT(*) AS debits,
       COUNT(*) FILTER (WHERE over > 0) AS over_debits,
       COALESCE(SUM(over), 0)::bigint AS over,
       COUNT(*) FILTER (WHERE over > 0 AND owed = 0) AS given_back_debits,
       COUNT(*) FILTER (WHERE owed > 0) AS owed_debits,
       COUNT(DISTINCT tenant_id) FILTER (WHERE owed > 0) AS owed_tenants,
       COALESCE(SUM(owed), 0)::bigint AS owed,
       COUNT(*) FILTER (WHERE quantity IS NULL) AS unjudged,
       MAX(charged / quantity) AS dearest_each,
       EXISTS (
           SELECT FROM credit_transactions t
           WHERE t.created_at >= %(until)s{_BOUNDS}
             AND t.kind = 'debit' AND NOT t.metadata ? 'quantity' AND -t.amount > %(cost)s
       ) AS goes_on
FROM judged;
"""
WORST = f"""{_JUDGED}
SELECT tenant_id, COUNT(*) AS debits, SUM(charged)::bigint AS charged, SUM(over)::bigint AS over,
       SUM(owed)::bigint AS owed
FROM judged
WHERE over > 0
GROUP BY tenant_id
ORDER BY SUM(over) DESC, tenant_id
LIMIT 10;
"""
# The position is a row's, not a page's: what is given back meanwhile moves nothing.
_PAGE = f"""(
        SELECT * FROM credit_transactions t
        WHERE t.created_at >= %(at)s AND t.created_at < %(until)s
          AND (t.created_at, t.tenant_id, t.id) > (%(at)s, %(after_tenant)s, %(after_id)s){_BOUNDS}
        ORDER BY t.created_at, t.tenant_id, t.id
        LIMIT %(page)s
    )"""
PAGE = f"""
WITH charged AS ({_CHARGED.format(source=_PAGE)})
SELECT tenant_id, id, created_at, GREATEST(charged - quantity * %(cost)s - back, 0) AS owed,
       quantity * %(cost)s AS should_cost
FROM charged
ORDER BY created_at, tenant_id, id;
"""
