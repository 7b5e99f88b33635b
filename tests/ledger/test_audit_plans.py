"""What an audit reads of a tenant follows what was written since the last one, however long the history is."""

import re

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from services.ledger.store.audit import lines, mirrors, standing
from tests.ledger.test_plans import LINES, PAGES_MAX, TENANT, history, pages

__all__ = ["history"]

NEW = 5
ASKED: dict[str, tuple[str, object]] = {
    "tenants": ("text[]", [TENANT]),
    "afters": ("bigint[]", [LINES - NEW]),
    "untils": ("bigint[]", [LINES]),
    "posted": ("bigint[]", [9]),
    "held": ("bigint[]", [0]),
    "ats": ("timestamptz[]", ["2020-01-01"]),
}
STATEMENTS = {
    "mirrors": mirrors.BALANCE,
    "who has new lines": mirrors.CHANGED,
    "new lines": lines.OF_LINES,
    "new transactions": lines.OF_TRANSACTIONS,
    "the chain": lines.CHAIN,
    "where a window ends": lines.ENDS,
    "lots": standing.LOTS,
    "holds": standing.HOLDS,
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_an_audit_does_not_feel_history(history: psycopg.Connection, name: str) -> None:
    compiled = str(text(STATEMENTS[name]).compile(dialect=PGDialect_psycopg()))
    order = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", compiled)))
    numbered = re.sub(r"%\((\w+)\)s", lambda found: f"${order.index(found[1]) + 1}", compiled)
    types = ", ".join(ASKED[key][0] for key in order)

    assert pages(history, numbered, types, [ASKED[key][1] for key in order]) < PAGES_MAX
