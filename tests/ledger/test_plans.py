"""What every statement reads stays small however long a tenant's history: measured in pages, under generic plans."""

import json
import re
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from services.ledger.store import load, reads, write
from tests.conftest import Database

TENANT = "plans-long"
LINES = 20_000
# A walk over the history reads four times as many; what is due for all counts what other tests left as well.
PAGES_MAX = 400

SEED = f"""
INSERT INTO ledger.tenant_credits (tenant_id, id, balance, permanent_balance, seq, last_at, chain_head, created_at)
VALUES ('{TENANT}', 'acc', 9, 9, {LINES}, now(), '', now());
INSERT INTO ledger.credit_buckets (tenant_id, lot, id, bucket, priority, granted, remaining, closed, reference_id,
    grant_transaction_id, created_at)
SELECT '{TENANT}', n, 'lot', 'permanent', 20, 9, CASE n WHEN 40 THEN 9 ELSE 0 END, n < 40, 'r', 't', now()
FROM generate_series(1, 40) n;
INSERT INTO ledger.credit_transactions (tenant_id, id, idempotency_key, fingerprint, fingerprint_version, kind, amount,
    tx_status, reason, description, reference_id, hold_id, refunded_transaction_id, metadata, answer, first_seq,
    last_seq, created_at)
SELECT tenant, 'txn_' || lpad(n::text, 26, '0'), 'k' || n, '', 1, CASE n % 2 WHEN 0 THEN 'grant' ELSE 'debit' END, 0,
    'posted', 'blog.publish', '', 'r' || n, '', '', '{{}}', '{{}}', n, n, now() - make_interval(secs => {LINES} - n)
FROM (SELECT '{TENANT}' AS tenant, n FROM generate_series(1, {LINES}) n
      UNION ALL SELECT 'plans-' || t, n FROM generate_series(1, 2000) t, generate_series(1, 10) n) made;
INSERT INTO ledger.credit_entries (tenant_id, seq, transaction_id, lot, bucket, kind, d_posted, d_held,
    lot_posted_after, lot_held_after, account_posted_after, account_held_after, at, hash)
SELECT '{TENANT}', n, 'txn_' || lpad(n::text, 26, '0'), 1 + n * 39 / {LINES}, 'permanent', 'debit', 0, 0, 9, 0, 9, 0,
    now() - make_interval(secs => {LINES} - n), ''
FROM generate_series(1, {LINES}) n;
INSERT INTO ledger.credit_holds (tenant_id, id, transaction_id, status, reserved, captured, open, expires_at,
    max_expires_at, created_at)
SELECT '{TENANT}', 'hold_' || n, 't', CASE WHEN n < 20000 THEN 'captured' ELSE 'held' END, 1,
    CASE WHEN n < 20000 THEN 1 ELSE 0 END, n >= 20000, now() - make_interval(secs => 20000 - n), now(), now()
FROM generate_series(1, 20000) n;
INSERT INTO ledger.credit_hold_legs (tenant_id, hold_id, leg, lot, reserved, captured)
SELECT '{TENANT}', 'hold_' || n, 1, 40, 1, CASE WHEN n < 20000 THEN 1 ELSE 0 END FROM generate_series(1, 20000) n;
INSERT INTO ledger.credit_revocations (tenant_id, reference_id, transaction_id, grant_reference_id, lot, asked, taken,
    claimed, created_at)
SELECT '{TENANT}', 'rfnd_' || n, 't', 'r', 40, 1, 1, 0, now() FROM generate_series(1, 20000) n;
ANALYZE ledger.credit_transactions, ledger.credit_entries, ledger.credit_buckets, ledger.tenant_credits,
    ledger.credit_holds, ledger.credit_hold_legs, ledger.credit_revocations
"""


@pytest.fixture(scope="module")
def history(database: Database) -> Iterator[psycopg.Connection]:
    """A connection that sees a long history, which nobody else ever does."""
    with psycopg.connect(database.admin_url, prepare_threshold=None) as db:
        db.execute("SET LOCAL search_path = ledger")
        db.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        for statement in SEED.split(";\n"):
            db.execute(statement)
        yield db
        db.rollback()


def pages(db: psycopg.Connection, statement: str, types: str, values: list[object]) -> int:
    """Pages that the statement touches when it runs, written included."""
    arguments = sql.SQL(", ").join(map(sql.Literal, values))
    db.execute(f"PREPARE measured ({types}) AS {statement}")
    try:
        with db.transaction(force_rollback=True):
            explain = sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE measured ({})").format(
                arguments
            )
            row = db.execute(explain).fetchone()
    finally:
        db.execute("DEALLOCATE measured")
    assert row is not None
    plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
    return int(plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"])


TEXTS, NUMBERS = "text[]", "bigint[]"
LANE = {
    "LOCK_ACCOUNTS": (TEXTS, [[TENANT]]),
    "OPEN_LOTS": (TEXTS, [[TENANT]]),
    "RECORDS_BY_KEY": (f"{TEXTS}, {TEXTS}", [[TENANT] * 9, [f"k{n}" for n in range(1, 10)]]),
    "OPERATIONS_BY_KEY": (f"{TEXTS}, {TEXTS}", [[TENANT] * 2, ["k1", "k2"]]),
    "MIRRORS": (TEXTS, [[TENANT]]),
    "ENTRIES_OF_RECORDS": (f"{TEXTS}, {NUMBERS}, {NUMBERS}", [[TENANT], [70], [71]]),
    "UPDATE_LOTS": (
        f"{TEXTS}, {NUMBERS}, {NUMBERS}, {NUMBERS}, {NUMBERS}, timestamptz[]",
        [[TENANT], [40], [8], [0], [0], [None]],
    ),
}


@pytest.mark.parametrize("name", LANE)
def test_the_write_path_does_not_feel_history(history: psycopg.Connection, name: str) -> None:
    types, values = LANE[name]
    numbers = iter(range(1, 20))
    template = getattr(load, name, None) or getattr(write, name)
    statement = re.sub("%s", lambda _: f"${next(numbers)}", template)

    assert pages(history, statement, types, values) < PAGES_MAX


NAMED: dict[str, dict[str, tuple[str, object]]] = {
    "HOLDS": {
        "tenants": (TEXTS, [TENANT]),
        "offset": ("interval", "0"),
        "within": ("interval", "10 ms"),
        "owners": (TEXTS, [TENANT]),
        "ids": (TEXTS, ["hold_19000"]),
    },
    "BY_REFERENCE": {
        "owners": (TEXTS, [TENANT]),
        "kinds": (TEXTS, ["grant"]),
        "ids": (TEXTS, ["r8000"]),
    },
    **{
        name: {"owners": (TEXTS, [TENANT]), "ids": (TEXTS, [value])}
        for name, value in {
            "GRANTED_LOTS": "r8000",
            "REVOCATIONS": "rfnd_9000",
            "SPENT": "txn_" + "8001".zfill(26),
        }.items()
    },
}


@pytest.mark.parametrize("name", NAMED)
def test_what_only_some_operations_ask_does_not_feel_history_either(
    history: psycopg.Connection, name: str
) -> None:
    order = list(NAMED[name])
    statement = re.sub(r"%\((\w+)\)s", lambda found: f"${order.index(found[1]) + 1}", getattr(load, name))
    types = ", ".join(kind for kind, _ in NAMED[name].values())

    assert pages(history, statement, types, [value for _, value in NAMED[name].values()]) < PAGES_MAX


EARLY = "txn_" + "500".zfill(26)
READS: dict[str, tuple[str, dict[str, object]]] = {
    "balance": ("ACCOUNT", {"offset": 0.0}),
    "balance after a line": (
        "LOTS_AT_SEQ",
        {"seq": 9000, "since": "2026-01-01", "until": "2026-01-02"},
    ),
    "balance at a moment": ("SEQ_AT", {"at": "2020-01-01"}),
    "first page": (
        "TRANSACTIONS",
        {"before": None, "scan": 9999, "reason": None, "rejected": False, "page": 51},
    ),
    "deep page": (
        "TRANSACTIONS",
        {"before": EARLY, "scan": 9999, "reason": None, "rejected": False, "page": 51},
    ),
    "one by id": ("TRANSACTION_BY_ID", {"value": EARLY}),
    "one by key": ("TRANSACTION_BY_KEY", {"value": "k7000"}),
    "lines of a page": ("ENTRIES", {"ids": [EARLY], "first": 500, "last": 500}),
    "grants": ("GRANTS", {"before": None, "page": 51}),
    "who is due": ("TENANTS_DUE", {"offset": 0.0, "page": 500, "without": ["plans-1"]}),
    "how much is due": ("DUE", {"offset": 0.0}),
}
TYPES = {
    "offset": "float",
    "seq": "bigint",
    "at": "timestamptz",
    "since": "timestamptz",
    "until": "timestamptz",
    "scan": "int",
    "rejected": "bool",
    "page": "int",
}
TYPES |= {"without": TEXTS, "ids": TEXTS, "first": "bigint", "last": "bigint"}


@pytest.mark.parametrize("name", READS)
def test_reads_do_not_feel_history(history: psycopg.Connection, name: str) -> None:
    statement, values = READS[name]
    values = {"tenant_id": TENANT, **values}
    compiled = str(text(getattr(reads, statement)).compile(dialect=PGDialect_psycopg()))
    order = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", compiled)))
    numbered = re.sub(r"%\((\w+)\)s", lambda found: f"${order.index(found[1]) + 1}", compiled)
    types = [
        ("bigint" if statement == "GRANTS" and key == "before" else TYPES.get(key, "text")) for key in order
    ]

    assert pages(history, numbered, ", ".join(types), [values[key] for key in order]) < PAGES_MAX
