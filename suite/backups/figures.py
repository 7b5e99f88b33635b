"""What a database holds, counted: the same figures of a backup and of what came of it."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import sql

from shared.migrations.roles import VERSION_TABLE
from suite.migrate import SCHEMAS

TABLES = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
ORDER BY 1, 2
"""
LEDGER = "SELECT count(*), coalesce(sum(amount), 0) FROM ledger.credit_transactions"


@dataclass(frozen=True)
class Figures:
    """Rows by `schema.table`, the ledger's transactions and what they come to, and each schema's revision."""

    rows: dict[str, int]
    transactions: int
    amount: int
    revisions: dict[str, str]


def count(db: psycopg.Connection) -> Figures:
    """Exact: it reads every table once, in the snapshot of the transaction that `db` is in."""
    tables = db.execute(TABLES).fetchall()
    rows = {
        f"{schema}.{table}": _one(db, "SELECT count(*) FROM {}", schema, table) for schema, table in tables
    }
    revisions = {
        schema.name: str(_one(db, "SELECT max(version_num) FROM {}", schema.name, VERSION_TABLE))
        for schema in SCHEMAS
        if f"{schema.name}.{VERSION_TABLE}" in rows
    }
    found = db.execute(LEDGER).fetchone() if "ledger.credit_transactions" in rows else None
    transactions, amount = found or (0, 0)
    return Figures(rows, int(transactions), int(amount), revisions)


def _one(db: psycopg.Connection, statement: str, schema: str, table: str) -> int:
    row = db.execute(sql.SQL(statement).format(sql.Identifier(schema, table))).fetchone()
    return row[0] if row else 0
