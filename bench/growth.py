"""Whether a debit costs more when there is much history, or when there are many tenants: pages touched and rows read."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import psycopg

from bench.figures import Rate, Ratio, ratio
from bench.rounds import HOT, Plan
from bench.world import Child, World

EMPTY, FEW = "empty", "64 tenants, empty"
YOUNG = [f"young-{number}" for number in range(64)]
DEBITS = 300
CALLERS = 64
# Past PostgreSQL's pause between two reports of a session's counters.
REPORT_SECONDS = 1.3

# A tenant's history as the ledger would have written it: one line and one transaction for each debit of one credit.
HISTORY = """
INSERT INTO ledger.credit_transactions (tenant_id, id, idempotency_key, fingerprint, fingerprint_version, kind, amount,
    tx_status, reason, description, reference_id, hold_id, refunded_transaction_id, metadata, answer, first_seq,
    last_seq, created_at)
SELECT %(tenant)s, 'txn_00' || lpad(n::text, 24, '0'), md5(n::text), repeat('fingrprt', 8)::bytea, 1, 'debit', -1,
    'posted', 'bench.debit', '', '', '', '', '{}',
    jsonb_build_object('available', a.balance - n, 'held', 0, 'posted', a.balance - n, 'buckets', jsonb_build_array(
        jsonb_build_array('subscription', a.subscription_balance - n, 0, a.subscription_expires_at),
        jsonb_build_array('permanent', a.permanent_balance, 0, NULL)),
        'next_expires_at', a.subscription_expires_at, 'seq', a.seq + n),
    a.seq + n, a.seq + n, now() - (%(count)s - n) * interval '1 second'
FROM ledger.tenant_credits a, generate_series(1, %(count)s) AS n WHERE a.tenant_id = %(tenant)s;
INSERT INTO ledger.credit_entries (tenant_id, seq, transaction_id, lot, bucket, kind, d_posted, d_held,
    lot_posted_after, lot_held_after, account_posted_after, account_held_after, at, hash)
SELECT %(tenant)s, a.seq + n, 'txn_00' || lpad(n::text, 24, '0'), b.lot, 'subscription', 'debit', -1, 0,
    b.remaining - n, 0, a.balance - n, 0, now() - (%(count)s - n) * interval '1 second', sha256(n::text::bytea)
FROM ledger.tenant_credits a JOIN ledger.credit_buckets b USING (tenant_id), generate_series(1, %(count)s) AS n
WHERE a.tenant_id = %(tenant)s AND b.bucket = 'subscription';
UPDATE ledger.credit_buckets SET remaining = remaining - %(count)s
WHERE tenant_id = %(tenant)s AND bucket = 'subscription';
UPDATE ledger.tenant_credits SET seq = seq + %(count)s, balance = balance - %(count)s,
    subscription_balance = subscription_balance - %(count)s, last_at = now(), chain_head = sha256(%(count)s::text::bytea)
WHERE tenant_id = %(tenant)s;
"""

# Copies of one tenant as it was provisioned: two lots, with their grants and lines.
TENANTS = """
CREATE TEMP TABLE copies AS SELECT 'crowd-' || n AS tenant_id FROM generate_series(1, %(count)s) AS n;
INSERT INTO ledger.tenant_credits SELECT (jsonb_populate_record(a, jsonb_build_object('tenant_id', c.tenant_id))).*
FROM copies c, ledger.tenant_credits a WHERE a.tenant_id = %(tenant)s;
INSERT INTO ledger.credit_buckets SELECT (jsonb_populate_record(b, jsonb_build_object('tenant_id', c.tenant_id))).*
FROM copies c, ledger.credit_buckets b WHERE b.tenant_id = %(tenant)s;
INSERT INTO ledger.credit_transactions SELECT (jsonb_populate_record(t, jsonb_build_object('tenant_id', c.tenant_id))).*
FROM copies c, ledger.credit_transactions t WHERE t.tenant_id = %(tenant)s;
INSERT INTO ledger.credit_entries SELECT (jsonb_populate_record(e, jsonb_build_object('tenant_id', c.tenant_id))).*
FROM copies c, ledger.credit_entries e WHERE e.tenant_id = %(tenant)s;
"""

TOUCHED = """
SELECT sum(heap_blks_hit + heap_blks_read + coalesce(idx_blks_hit + idx_blks_read, 0)
    + coalesce(toast_blks_hit + toast_blks_read + tidx_blks_hit + tidx_blks_read, 0))::bigint
FROM pg_statio_user_tables WHERE schemaname = 'ledger'"""
READ = """
SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_user_tables
WHERE schemaname = 'ledger'"""


@dataclass(frozen=True)
class Site:
    """One ledger over one database, and whom it debits."""

    name: str
    database: str
    address: str
    tenants: list[str]


class Growth:
    """An empty ledger, one with a long history and one with many tenants, side by side."""

    def __init__(self, world: World, plan: Plan, say: Callable[[str], None]) -> None:
        self._world, self._plan, self._say = world, plan, say
        self.rates: dict[str, Rate] = {}

    def run(self, load: Child) -> list[Ratio]:
        history, tenants = f"{self._plan.history:,} transactions", f"{self._plan.tenants:,} tenants"
        with contextlib.ExitStack() as stack:
            young = self._site(stack, load, EMPTY, "", 0)
            few = replace(young, name=FEW, tenants=YOUNG)
            sites = [
                young,
                self._site(stack, load, history, HISTORY, self._plan.history),
                few,
                self._site(stack, load, tenants, TENANTS, self._plan.tenants),
            ]
            for _ in range(3):
                for site in sites:
                    self._measure(load, site)
        found = []
        for name, base in ((history, EMPTY), (tenants, FEW)):
            for what in ("pages touched", "rows read"):
                for how in ("alone", "64 callers"):
                    above, below = (self.rates[f"{each}: {what}, {how}"] for each in (name, base))
                    found.append(ratio(f"{name} ÷ {base}: {what}, {how}", above, below, 1.1, at_least=False))
        return found

    def _site(self, stack: contextlib.ExitStack, load: Child, name: str, fill: str, count: int) -> Site:
        database = self._world.database(f"bench_growth_{count}_{name.split()[-1]}")
        address = stack.enter_context(self._world.ledger(database))
        load.ask(do="provision", address=address, key=self._world.room_key, tenants=[*HOT, *YOUNG])
        began_at = time.monotonic()
        with psycopg.connect(self._world.admin_url(database), autocommit=True) as db:
            for statement in filter(str.strip, fill.split(";\n")):
                db.execute(statement, {"tenant": HOT[0], "count": count})
        self._say(f"{name}: filled in {time.monotonic() - began_at:.0f} s")
        crowd = [f"crowd-{number}" for number in range(1, count + 1)] if fill is TENANTS else HOT
        site = Site(name, database, address, crowd)
        self._debit(load, site, "64 callers")
        # What autovacuum does within a minute; plans are made anew after it.
        with psycopg.connect(self._world.admin_url(database), autocommit=True) as db:
            db.execute("VACUUM (FREEZE, ANALYZE)")
        self._debit(load, site, "alone")
        return site

    def _measure(self, load: Child, site: Site) -> None:
        for how in ("alone", "64 callers"):
            touched, read = self._counters(load, site)
            began_at = time.perf_counter()
            done = self._debit(load, site, how)
            milliseconds = (time.perf_counter() - began_at) * 1000
            touched_after, read_after = self._counters(load, site)
            self._note(f"{site.name}: pages touched, {how}", (touched_after - touched) / done, "pages/debit")
            self._note(f"{site.name}: rows read, {how}", (read_after - read) / done, "rows/debit")
            self._note(f"{site.name}: time, {how}", milliseconds / done, "ms/debit")

    def _debit(self, load: Child, site: Site, how: str) -> int:
        callers = 1 if how == "alone" else CALLERS
        order = {"do": "counted", "method": "Debit", "tenants": site.tenants, "address": site.address}
        return int(
            load.ask(
                **order,
                key=self._world.gateway_key,
                callers=callers,
                count=DEBITS * (1 if callers == 1 else 10),
            )
        )

    def _counters(self, load: Child, site: Site) -> tuple[int, int]:
        """A session reports at the end of a transaction, if its last report is a while ago: one more makes it do so."""
        time.sleep(REPORT_SECONDS)
        order = {"do": "counted", "method": "Debit", "address": site.address, "key": self._world.gateway_key}
        for tenant in site.tenants[:8]:  # every lane has one of these
            load.ask(**order, tenants=[tenant], callers=1, count=1)
        time.sleep(0.05)
        with psycopg.connect(self._world.admin_url(site.database)) as db:
            values = [db.execute(statement).fetchone() for statement in (TOUCHED, READ)]
        return tuple(int(value[0]) if value else 0 for value in values)  # type: ignore[return-value]

    def _note(self, name: str, value: float, unit: str) -> None:
        self.rates.setdefault(name, Rate(name, unit)).rounds.append(value)
