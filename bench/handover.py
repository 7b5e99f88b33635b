"""From taken in to applied, with the real subscriptions and ledger behind: a steady stream, then a backlog beside one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from bench.figures import Rate, Ratio, percentile
from bench.ingress import IngressPlan, Say
from bench.processor import seconds_of
from bench.world import Child, World

STEADY_PER_SECOND = 50
BESIDE_PER_SECOND = 20
APPLIED_P99_SECONDS_MAX = 5
DRAIN_PER_SECOND_MIN = 100
PLAN = "starter"
# Only charges, which are all applied and each bring credits.
CHARGES = "charges"
STORING_CALLERS = 64
SETTLE_SECONDS_MAX = 900

_WAITING = "SELECT count(*) FROM webhooks.webhook_events WHERE NOT processed"
_DONE = "SELECT count(*) FROM webhooks.webhook_events WHERE processed"
_OWED = """SELECT count(*) FROM subscriptions.billing_reconciliation_queue
    WHERE completed_at IS NULL AND abandoned_at IS NULL"""
_OUTCOMES = """SELECT event_type, coalesce(outcome, 'waiting'), count(*)
    FROM webhooks.webhook_events GROUP BY 1, 2 ORDER BY 3 DESC"""
_SINCE = """SELECT extract(epoch FROM processed_at - received_at)::float8 FROM webhooks.webhook_events
    WHERE received_at >= %s AND processed ORDER BY 1"""
_BALANCES = "SELECT tenant_id, balance FROM ledger.tenant_credits"
_PAID = """SELECT tenant_id, count(*) FROM webhooks.webhook_events
    WHERE event_type = 'subscription.charged' AND processed GROUP BY 1"""
_CREDITS = "SELECT base_credits FROM subscriptions.plans WHERE id = %s"


@dataclass(frozen=True)
class Behind:
    """The rooms behind the ingress."""

    subscriptions: str
    pids: dict[str, int]


class Handover:
    """One database, its tenants, and every event's way from the door to their balances."""

    def __init__(self, world: World, plan: IngressPlan, say: Say, *, kind: str) -> None:
        self._world, self._plan, self._say, self._kind = world, plan, say, kind
        self._database = world.database(f"bench_handover_{kind}")
        self.rates: dict[str, Rate] = {}

    def run(self) -> list[Ratio]:
        with self._behind() as behind, Child("bench.posts") as provider:
            customers = self._customers(behind)
            provider.ask(do="customers", customers=customers)
            began_with, ratios = self._balances(), []
            with self._world.webhooks(self._database, behind.subscriptions) as (address, _):
                if self._kind == self._plan.backlogs[0]:
                    for kind in (CHARGES, self._kind):
                        ratios += self._steady(provider, address, kind)
                idle = self._beside(provider, address, self._plan.idle_seconds, f"{self._kind}, inbox empty")
                self._settle()
            with self._world.webhooks(self._database, behind.subscriptions, delivers=False) as (address, _):
                self._store(provider, address)
            with self._world.webhooks(self._database, behind.subscriptions) as (address, pid):
                ratios += self._drain(provider, address, idle, {"webhooks": pid, **behind.pids})
                if self._plan.drains_all:
                    self._settle()
            self._settle(_OWED)
            self._prove(began_with)
        return ratios

    @contextlib.contextmanager
    def _behind(self) -> Iterator[Behind]:
        world, database = self._world, self._database
        with (
            world.sandbox() as sandbox,
            world.ledger(database) as ledger,
            world.subscriptions(database, ledger, sandbox) as (subscriptions, pid),
        ):
            yield Behind(subscriptions, {"subscriptions": pid})

    def _customers(self, behind: Behind) -> list[dict[str, Any]]:
        with Child("bench.buyers") as buyers:
            bought = buyers.ask(
                address=behind.subscriptions,
                key=self._world.gateway_key,
                plan=PLAN,
                tenants=[f"buyer-{number}" for number in range(self._plan.customers)],
            )
        with self._connected() as db:
            known = dict(
                db.execute(
                    "SELECT provider_subscription_id, provider_plan_id FROM subscriptions.checkout_intents"
                ).fetchall()
            )
        return [{**each, "plan_id": known[each["subscription_id"]]} for each in bought]

    def _steady(self, provider: Child, address: str, kind: str) -> list[Ratio]:
        """So many a second that subscriptions apply and the ledger books."""
        answer = self._send(provider, address, STEADY_PER_SECOND, self._plan.applied_seconds, kind)
        self._settle()
        with self._connected() as db:
            waited = [row[0] for row in db.execute(_SINCE, [answer["began_at"]])]
        name = f"{kind}, {STEADY_PER_SECOND}/s: from taken in to applied"
        for share, value in (("p50", 0.5), ("p99", 0.99)):
            self._rate(f"{name}, {share}", "ms").rounds.append(percentile(waited, value) * 1000)
        self._rate(f"{kind}, {STEADY_PER_SECOND}/s: taking in, p99", "ms").rounds.append(answer["p99_ms"])
        slowest = percentile(waited, 0.99)
        return [Ratio(f"{name}: p99, s", slowest, APPLIED_P99_SECONDS_MAX, at_least=False)]

    def _beside(self, provider: Child, address: str, seconds: float, name: str) -> float:
        """How long the provider waits for its answers at the rate that arrives beside a backlog."""
        answer = self._send(provider, address, BESIDE_PER_SECOND, seconds, self._kind)
        for share in ("p50", "p99"):
            rate = self._rate(f"{name}, {BESIDE_PER_SECOND}/s: taking in, {share}", "ms")
            rate.rounds.append(answer[f"{share}_ms"])
        return float(answer["p99_ms"])

    def _store(self, provider: Child, address: str) -> None:
        """The backlog, taken in while nothing is handed on."""
        order = {"do": "counted", "count": self._plan.backlog, "callers": STORING_CALLERS}
        provider.ask(**order, **self._order(address, self._kind))
        waiting = self._count(_WAITING)
        if waiting != self._plan.backlog:
            raise RuntimeError(f"{self._plan.backlog} deliveries were acknowledged, {waiting} wait")
        with self._connected() as db:
            db.execute("ANALYZE webhooks.webhook_events")

    def _drain(self, provider: Child, address: str, idle: float, pids: dict[str, int]) -> list[Ratio]:
        """The backlog becomes less while more arrives."""
        used = {name: seconds_of(pid) for name, pid in pids.items()}
        name = f"{self._kind}, {self._plan.backlog:,} backlogged"
        before, began_at = self._count(_DONE), time.monotonic()
        busy = self._beside(provider, address, self._plan.drain_seconds, name)
        took, drained = time.monotonic() - began_at, self._count(_DONE) - before
        left = self._count(_WAITING)
        self._say(f"{self._kind}: {drained} handed on in {took:.0f} s, {left} left")
        rate = drained / took
        self._rate(f"{name}: handed on", "events/s").rounds.append(rate)
        for room, pid in pids.items():
            spent = (seconds_of(pid) - used[room]) / max(1, drained)
            self._rate(f"{name}: processor time of {room}", "ms/event").rounds.append(spent * 1000)
        return [
            Ratio(f"{name}: handed on, events/s", rate, DRAIN_PER_SECOND_MIN),
            Ratio(f"{name}: p99 of taking in ÷ inbox empty", busy / idle, 2, at_least=False),
        ]

    def _settle(self, *what: str) -> None:
        """Waits until nothing waits and nothing is owed."""
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while any(self._count(query) for query in what or (_WAITING, _OWED)):
            if time.monotonic() > deadline:
                raise RuntimeError("what was taken in is not handed on")
            time.sleep(0.5)

    def _prove(self, began_with: dict[str, int]) -> None:
        """Every delivery was applied, and every balance is what was paid: nothing lost, nothing twice."""
        with self._connected() as db:
            outcomes = {row[:2]: row[2] for row in db.execute(_OUTCOMES)}
            paid = dict(db.execute(_PAID).fetchall())
            found = db.execute(_CREDITS, [PLAN]).fetchone()
        credits = int(found[0]) if found else 0
        for kind, outcome in outcomes:
            allowed = "applied" if kind == "subscription.charged" else "ignored"
            if outcome not in (allowed, "waiting") or (outcome == "waiting" and self._plan.drains_all):
                raise RuntimeError(f"not everything was applied: {outcomes}")
        balances = self._balances()
        for tenant, before in began_with.items():
            wanted = before + credits * int(paid.get(tenant, 0))
            if balances[tenant] != wanted:
                raise RuntimeError(f"{tenant} has {balances[tenant]} credits and paid for {wanted}")
        applied = sum(paid.values())
        self._say(
            f"{self._kind}: {applied} charges of {len(began_with)} tenants are in their balances, each once"
        )

    def _send(self, provider: Child, address: str, rate: float, seconds: float, kind: str) -> dict[str, Any]:
        with self._connected() as db:
            began_at = db.execute("SELECT clock_timestamp() + interval '1 second'").fetchone()
        order = {"do": "open", "rate": rate, "seconds": seconds, "seed": round(rate * seconds)}
        answer = provider.ask(**order, **self._order(address, kind))
        if answer["refusals"]:
            raise RuntimeError(f"deliveries were refused: {answer['refusals']}")
        return {**answer, "began_at": began_at[0] if began_at else None}

    def _order(self, address: str, kind: str) -> dict[str, Any]:
        return {"kind": kind, "address": address, "secret": self._world.webhook_secret}

    def _balances(self) -> dict[str, int]:
        with self._connected() as db:
            return {tenant: int(balance) for tenant, balance in db.execute(_BALANCES)}

    def _count(self, query: str) -> int:
        with self._connected() as db:
            found = db.execute(query.encode()).fetchone()
        return int(found[0]) if found else 0

    def _connected(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._world.admin_url(self._database), autocommit=True)

    def _rate(self, name: str, unit: str) -> Rate:
        return self.rates.setdefault(name, Rate(name, unit))
