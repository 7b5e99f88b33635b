"""Finds the events that were set aside without reading all that were not; ends what 0003 began."""

from alembic import op

revision = "0004"
down_revision = "0003"

VALIDATION = """
ALTER TABLE webhook_events VALIDATE CONSTRAINT webhook_events_signed_with;
"""

INDEX = """
CREATE INDEX webhook_events_dead ON webhook_events (received_at, id) WHERE outcome = 'dead';
"""


def upgrade() -> None:
    """Look at the rows that were there, then add the index."""
    op.execute(VALIDATION)
    op.execute(INDEX)
