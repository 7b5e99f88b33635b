"""The schema `ops`: what several rooms append to and operators read."""

from pathlib import Path

from shared.migrations import Schema

SCHEMA = Schema("ops", Path(__file__).parent / "migrations")
