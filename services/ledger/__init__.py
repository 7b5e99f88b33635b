"""The ledger owns every credit, and what a tenant may use. Read rpc/, actions/, lanes.py, rules/, store/, in that order."""

from pathlib import Path

from shared.migrations import Schema

SCHEMA = Schema("ledger", Path(__file__).parent / "migrations")
