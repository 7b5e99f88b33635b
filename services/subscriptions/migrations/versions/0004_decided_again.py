"""What was ignored may be decided anew when an operator replays it, once its cause is mended."""

from alembic import op

revision = "0004"
down_revision = "0003"

TABLE = """
ALTER TABLE processed_payment_events ADD COLUMN decided_again_at timestamptz;
"""

GRANTS = """
GRANT UPDATE (outcome, reason, tenant_id, decided_again_at) ON processed_payment_events TO subscriptions_rw;
"""


def upgrade() -> None:
    """Say when, and let the decision change; what the event was stays as it came."""
    op.execute(TABLE)
    op.execute(GRANTS)
