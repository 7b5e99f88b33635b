"""A room forgets refused signatures of its own once their retention is over."""

from alembic import op

revision = "0002"
down_revision = "0001"

GRANTS = """
GRANT DELETE ON billing_signature_failures TO ops_rw;
CREATE POLICY own_room_deletes ON billing_signature_failures FOR DELETE USING (current_user = room || '_rw');
"""


def upgrade() -> None:
    """Let rooms delete what is theirs there; what they may delete is the cleanup's rule."""
    op.execute(GRANTS)
