"""What operators' repairs and the numbers that Prometheus asks for need."""

from alembic import op

revision = "0004"
down_revision = "0003"

TABLES = """
-- The rows that are there are read by the next version, while others write.
ALTER TABLE tenant_operations DROP CONSTRAINT tenant_operations_kind;
ALTER TABLE tenant_operations ADD CONSTRAINT tenant_operations_kind CHECK (kind IN (
    'consume', 'release', 'set_usage', 'authorize', 'freeze', 'unfreeze', 'rebuild_mirrors')) NOT VALID;

-- Counted at every scrape. Both hold few rows; neither column changes when credits move, so updates stay heap-only.
CREATE INDEX tenant_credits_frozen ON tenant_credits (tenant_id) WHERE state = 'frozen';
CREATE INDEX grace_periods_active ON grace_periods (limit_key, expires_at) WHERE NOT ended;
"""


def upgrade() -> None:
    op.execute(TABLES)
