"""Says of each delivery which secret signed it, so that a person can see when the previous one has fallen silent."""

from alembic import op

revision = "0003"
down_revision = "0002"

COLUMN = """
ALTER TABLE webhook_events ADD COLUMN signed_with text; -- null: taken in before this column was there
-- Validated by the next migration: looking at every row in this transaction would keep deliveries out meanwhile.
ALTER TABLE webhook_events ADD CONSTRAINT webhook_events_signed_with
    CHECK (signed_with IN ('current', 'previous')) NOT VALID;
"""


def upgrade() -> None:
    """Add the column."""
    op.execute(COLUMN)
