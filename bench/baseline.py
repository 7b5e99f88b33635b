"""The opponents: `python -m bench.baseline URL` debits over a psycopg pool, without gRPC, as well as it can be written."""

from __future__ import annotations

import os
import random
import sys
from typing import Any

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from bench import child, loops

POOL_SIZE = 16

# The two tables that such a debit needs, on the advice that the ledger's own follow: heap-only updates, one key.
TABLES = """
CREATE SCHEMA bench;
CREATE TABLE bench.balances (
    tenant_id text PRIMARY KEY,
    balance bigint NOT NULL CHECK (balance >= 0)
) WITH (fillfactor = 50);
CREATE TABLE bench.transactions (
    id bigint GENERATED ALWAYS AS IDENTITY,
    tenant_id text NOT NULL,
    idempotency_key text NOT NULL,
    amount bigint NOT NULL,
    balance_after bigint NOT NULL,
    reason text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, idempotency_key)
);
CREATE FUNCTION bench.debit(who text, key text, credits bigint, what text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    was bigint;
BEGIN
    SELECT balance INTO was FROM bench.balances WHERE tenant_id = who FOR UPDATE;
    IF was IS NULL OR was < credits THEN
        RAISE EXCEPTION 'not enough credits';
    END IF;
    UPDATE bench.balances SET balance = was - credits WHERE tenant_id = who;
    INSERT INTO bench.transactions (tenant_id, idempotency_key, amount, balance_after, reason)
    VALUES (who, key, -credits, was - credits, what);
    RETURN was - credits;
END $$;
GRANT USAGE ON SCHEMA bench TO ledger_rw;
GRANT SELECT, INSERT, UPDATE ON bench.balances, bench.transactions TO ledger_rw;
"""
TENANT = "INSERT INTO bench.balances (tenant_id, balance) SELECT unnest(%s::text[]), 1000000000000"

LOCK = "SELECT balance FROM bench.balances WHERE tenant_id = %s FOR UPDATE"
UPDATE = "UPDATE bench.balances SET balance = %s WHERE tenant_id = %s"
INSERT = """INSERT INTO bench.transactions (tenant_id, idempotency_key, amount, balance_after, reason)
VALUES (%s, %s, %s, %s, %s)"""
FUNCTION = "SELECT bench.debit(%s, %s, %s, %s)"

# The same for pgbench, which is told the first and the last tenant.
PGBENCH = """\\set who random(:first, :last)
\\set key random(1, 9000000000000000000)
BEGIN;
SELECT balance FROM bench.balances WHERE tenant_id = 'bench-' || :who::text FOR UPDATE \\gset
UPDATE bench.balances SET balance = :balance::bigint - 1 WHERE tenant_id = 'bench-' || :who::text;
INSERT INTO bench.transactions (tenant_id, idempotency_key, amount, balance_after, reason)
VALUES ('bench-' || :who::text, 'pgbench-' || :key::text, -1, :balance::bigint - 1, 'bench.debit');
COMMIT;
"""


class Baseline:
    """Debits over a pool of its own."""

    def __init__(self, url: str) -> None:
        self._pool = AsyncConnectionPool(
            url, min_size=POOL_SIZE, max_size=POOL_SIZE, open=False, configure=_configure
        )
        self._is_open = False

    async def handle(self, order: dict[str, Any]) -> Any:
        if not self._is_open:
            await self._pool.open(wait=True)
            self._is_open = True
        tenants = order["tenants"]
        work = self._interactive if order["method"] == "interactive" else self._function
        return await loops.closed(
            lambda: work(random.choice(tenants)),
            warm_seconds=order["warm_seconds"],
            seconds=order["seconds"],
        )

    async def _interactive(self, tenant: str) -> int:
        async with self._pool.connection() as db, db.cursor() as cursor:
            await cursor.execute("BEGIN")
            try:
                await cursor.execute(LOCK, [tenant])
                found = await cursor.fetchone()
                if found is None or found[0] < 1:
                    raise ValueError("not enough credits")
                after = found[0] - 1
                await cursor.execute(UPDATE, [after, tenant])
                await cursor.execute(INSERT, [tenant, os.urandom(12).hex(), -1, after, "bench.debit"])
                await cursor.execute("COMMIT")
            except BaseException:
                await db.rollback()
                raise
        return 1

    async def _function(self, tenant: str) -> int:
        async with self._pool.connection() as db, db.cursor() as cursor:
            await cursor.execute(FUNCTION, [tenant, os.urandom(12).hex(), 1, "bench.debit"])
        return 1


async def _configure(connection: AsyncConnection[Any]) -> None:
    await connection.set_autocommit(True)  # BEGIN is said once, by us
    connection.prepare_threshold = 0


if __name__ == "__main__":
    child.serve(Baseline(sys.argv[1]).handle)
