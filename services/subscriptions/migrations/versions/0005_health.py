"""What is asked for every five minutes, or with each scrape, has an index of its own."""

from alembic import op

revision = "0005"
down_revision = "0004"

INDEXES = """
CREATE INDEX payments_received ON payments (received_at);
CREATE INDEX processed_payment_events_failed ON processed_payment_events (received_at)
    WHERE event_type = 'payment.failed';
CREATE INDEX billing_disputes_open ON billing_disputes (created_at, id) WHERE status IN ('open', 'under_review');
CREATE INDEX billing_notifications_downgrades ON billing_notifications (created_at, id)
    WHERE kind = 'auto_downgraded';
"""


def upgrade() -> None:
    """Charges and failures of the last hour, disputes that are not closed, downgrades of the last day."""
    op.execute(INDEXES)
