"""Finds the events that were set aside without reading all that were not."""

from alembic import op

revision = "0004"
down_revision = "0003"

INDEX = """
CREATE INDEX webhook_events_dead ON webhook_events (received_at, id) WHERE outcome = 'dead';
"""


def upgrade() -> None:
    """Add the index."""
    op.execute(INDEX)
