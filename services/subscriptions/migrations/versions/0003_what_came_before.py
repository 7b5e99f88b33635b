"""Rows of the first release say what is asked of them since: the time that credits were paid for, months still owed.

Apart from 0002, whose changes of tables must not be held for as long as these take. Tasks get the indexes that fit how
they are asked for.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

# Without it an upgrade would give the money of the old period back and take none of its credits.
PERIODS = """
UPDATE credit_grants SET period_start = payments.period_start, period_end = payments.period_end
FROM payments
WHERE payments.id = credit_grants.payment_id AND payments.purpose = 'plan_cycle'
    AND credit_grants.period_start IS NULL;
"""

# The first release granted nothing for a year that drips, and had no job that did.
DRIPPING = """
UPDATE payments SET drip_credits = plans.base_credits
FROM plans
WHERE plans.id = payments.plan_id AND payments.billing_cycle = 'yearly' AND payments.drip_credits IS NULL
    AND plans.base_credits > 0
    AND NOT EXISTS (SELECT FROM credit_grants WHERE credit_grants.payment_id = payments.id);
"""


# A night's free months are all due at one moment: whoever takes the next few must not sort them all. And what was given
# up is asked for every minute, beside everything that was done in three months.
TASKS = """
DROP INDEX billing_reconciliation_queue_due;
CREATE INDEX billing_reconciliation_queue_due ON billing_reconciliation_queue (next_attempt_at, position)
    WHERE completed_at IS NULL AND abandoned_at IS NULL;
CREATE INDEX billing_reconciliation_queue_abandoned ON billing_reconciliation_queue (position)
    WHERE abandoned_at IS NOT NULL AND completed_at IS NULL;
"""


def upgrade() -> None:
    """Fill in what the first release left out; last what others wait for."""
    op.execute(PERIODS)
    op.execute(DRIPPING)
    op.execute(TASKS)
