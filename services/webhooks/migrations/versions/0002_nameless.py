"""Finds events whose tenant was not known yet, once something tells."""

from alembic import op

revision = "0002"
down_revision = "0001"

INDEX = """
CREATE INDEX webhook_events_nameless ON webhook_events (aggregate_id) WHERE tenant_id IS NULL;
"""


def upgrade() -> None:
    """Add the index."""
    op.execute(INDEX)
