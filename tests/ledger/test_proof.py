"""Every column of the ledger is proven, or named here as one that is not."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.ledger import tables
from services.ledger.actions import audit as actions_audit
from services.ledger.actions import findings as actions_findings
from services.ledger.rules.findings import Found
from services.ledger.store.audit import mirrors
from services.ledger.store.audit.mirrors import Reading
from shared.database import create_engine
from tests.conftest import Database
from tests.ledger.conftest import RunningLedger
from tests.ledger.tampering import everything, verify_one

# No balance, no line and no decision about credits follows from these.
NOT_PROVEN = {
    "tenant_credits": {
        *(
            "id",
            "last_at",
            "state",
            "frozen_reason",
            "frozen_at",
            "entitlements_version",
            "plan_code",
        ),
        "created_at",
    },
    "credit_buckets": {"id", "priority", "reference_id", "pinned_until", "created_at"},
    "credit_transactions": {
        *("fingerprint", "fingerprint_version", "description", "actor", "metadata", "answer"),
    },
    "credit_entries": set(),
    "credit_holds": {"expires_at", "max_expires_at", "created_at", "reason", "reference_id"},
    "credit_hold_legs": {"leg", "lot"},
    "credit_revocations": {
        *(
            "reference_id",
            "transaction_id",
            "grant_reference_id",
            "asked",
            "restored_transaction_id",
            "created_at",
        ),
    },
}
COLUMNS = [
    (table, column.name)
    for table in NOT_PROVEN
    for column in tables.metadata.tables[f"ledger.{table}"].columns
    if column.name != "tenant_id"
]
# By type; where the constraints of a column leave few other values, one of those.
OTHER = {
    "bigint": "{c} + 1",
    "smallint": "{c} + 1",
    "text": "{c} || 'x'",
    "boolean": "NOT {c}",
    "timestamp with time zone": "{c} - interval '1 second'",
    "bytea": "decode('ab', 'hex') || {c}",
    "jsonb": "'{{\"other\": 1}}'",
}
SPECIAL = {
    "bucket": "CASE {c} WHEN 'permanent' THEN 'subscription' ELSE 'permanent' END",
    ("credit_transactions", "kind"): "CASE {c} WHEN 'debit' THEN 'adjustment' ELSE 'debit' END",
    "tx_status": "CASE {c} WHEN 'posted' THEN 'held' ELSE 'posted' END",
    "status": "CASE {c} WHEN 'voided' THEN 'expired' ELSE 'voided' END",
    "state": "'frozen'",
    "frozen_at": "now()",
    "seq": "{c} + 1000",
    "lot": "{c} + 1000",
    ("credit_holds", "captured"): "{c} - 1",
    ("credit_hold_legs", "captured"): "{c} - 1",
    ("credit_revocations", "taken"): "{c} - 1",
}
# Which row is changed: one in which the column says something.
WHERE = {
    ("tenant_credits", "frozen_at"): "true",
    # Only of the lot that ends last: the mirror says when that is.
    ("credit_buckets", "expires_at"): "expires_at = (SELECT subscription_expires_at FROM tenant_credits"
    " WHERE tenant_id = :tenant)",
    ("credit_entries", "refunded_seq"): "refunded_seq IS NOT NULL",
    ("credit_transactions", "hold_id"): "hold_id <> ''",
    ("credit_transactions", "refunded_transaction_id"): "refunded_transaction_id <> ''",
    ("credit_transactions", "*"): "tx_status <> 'rejected' AND first_seq > 0",
    ("credit_buckets", "held"): "remaining > held",
    ("credit_buckets", "remaining"): "NOT closed",  # a constraint keeps closed ones empty
    ("credit_buckets", "closed"): "remaining = 0",
    ("credit_holds", "status"): "status = 'held'",
    ("credit_holds", "captured"): "captured > 0",
    ("credit_hold_legs", "captured"): "captured > 0",
    ("credit_holds", "released"): "open",
    ("credit_hold_legs", "released"): "reserved > captured + released",
    ("credit_revocations", "taken"): "taken > 0",
    ("credit_revocations", "claimed"): "taken + claimed < asked",
}


@pytest.fixture(scope="module")
async def proven(ledger: RunningLedger) -> str:
    """A tenant with everything, and a hold that is still open."""
    tenant = "proven-in-every-column"
    await everything(ledger, tenant, open_hold=True)
    assert (await verify_one(ledger, tenant)).verified
    return tenant


@pytest.fixture(scope="module")
async def keys(database: Database) -> AsyncIterator[AsyncEngine]:
    """Sessions of somebody whom no grant stops."""
    engine = create_engine(database.admin_url, application_name="test_proof", pool_size=1)
    yield engine
    await engine.dispose()


async def change(db: AsyncConnection, tenant: str, table: str, column: str) -> None:
    """Changes the column in one row."""
    where = WHERE.get((table, column)) or WHERE.get((table, "*")) or f"{column} IS NOT NULL"
    type_ = await db.scalar(
        text(
            "SELECT data_type FROM information_schema.columns"
            " WHERE table_schema = 'ledger' AND table_name = :table AND column_name = :column"
        ),
        {"table": table, "column": column},
    )
    other = SPECIAL.get((table, column)) or SPECIAL.get(column) or OTHER[str(type_)]
    changed = await db.execute(
        text(
            f"UPDATE {table} SET {column} = {other.format(c=column)} WHERE ctid = ("
            f" SELECT ctid FROM {table} WHERE tenant_id = :tenant AND {where} ORDER BY ctid DESC LIMIT 1)"
        ),
        {"tenant": tenant},
    )
    assert changed.rowcount == 1, "the tenant has no such row"


async def recomputed(db: AsyncConnection, tenant: str) -> list[Found]:
    verifier, _ = await actions_findings.recompute(db, tenant, math.inf)
    return verifier.found


async def audited(db: AsyncConnection, tenant: str) -> list[Found]:
    account = (
        await db.execute(
            text("SELECT seq, chain_head FROM tenant_credits WHERE tenant_id = :tenant"), {"tenant": tenant}
        )
    ).one()
    reading = Reading(tenant, actions_audit.START, account.seq, account.chain_head, again=True)
    found, _ = await actions_audit.examine(db, [(reading, account.seq)], {tenant: 0})
    return found + await mirrors.compare(db, [tenant])


@pytest.mark.parametrize(("table", "column"), COLUMNS, ids=[".".join(each) for each in COLUMNS])
@pytest.mark.parametrize("prove", [recomputed, audited], ids=["recomputed", "audited"])
async def test_every_column_is_proven_or_named_as_not(
    proven: str,
    keys: AsyncEngine,
    table: str,
    column: str,
    prove: Callable[[AsyncConnection, str], Awaitable[list[Found]]],
) -> None:
    async with keys.connect() as db:
        await db.execute(text("SET LOCAL search_path = ledger"))
        before = await prove(db, proven)
        await change(db, proven, table, column)
        found = await prove(db, proven)
        await db.rollback()

    assert before == []
    assert (found == []) == (column in NOT_PROVEN[table]), found
