"""What a tenant has bought and is therefore entitled to."""

from pathlib import Path

from shared.migrations import Schema

SCHEMA = Schema("subscriptions", Path(__file__).parent / "migrations")
