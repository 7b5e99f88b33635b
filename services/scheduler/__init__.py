"""The scheduler: makes time pass, and knows no business rule."""

from pathlib import Path

from shared.migrations import Schema

SCHEMA = Schema("scheduler", Path(__file__).parent / "migrations")
