"""Rows of the first release say what is asked of them since: the time that credits were paid for, months still owed.

Apart from 0002, whose changes of tables must not be held for as long as these take.
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


def upgrade() -> None:
    """Fill in what the first release left out."""
    op.execute(PERIODS)
    op.execute(DRIPPING)
