"""Reads the rows that 0004 did not, in a transaction of its own: nobody's write waits for it."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute("ALTER TABLE tenant_operations VALIDATE CONSTRAINT tenant_operations_kind")
