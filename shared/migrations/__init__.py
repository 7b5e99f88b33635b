"""Alembic for every schema of one database, under one lock, with a role per schema."""

from shared.migrations.errors import MigrationFailed, SchemaBehind
from shared.migrations.roles import Schema
from shared.migrations.runner import (
    assert_current,
    drift,
    migrate,
    pending,
)

__all__ = ["MigrationFailed", "Schema", "SchemaBehind", "assert_current", "drift", "migrate", "pending"]
