"""Says of a refused signature at which of a provider's addresses it came in, and finds one tenant's."""

from alembic import op

revision = "0003"
down_revision = "0002"

COLUMN = """
ALTER TABLE billing_signature_failures ADD COLUMN path text; -- null: the provider's default address, or none
CREATE INDEX billing_signature_failures_tenant ON billing_signature_failures (tenant_id, created_at)
    WHERE tenant_id IS NOT NULL;
"""


def upgrade() -> None:
    """Add the column and the index."""
    op.execute(COLUMN)
