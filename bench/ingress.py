"""What the ingress takes in beside a server that only verifies, and how long its callers wait at half of that."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from bench.figures import Rate, Ratio, ratio
from bench.processor import seconds_of
from bench.world import Child, World

CALLERS = 32
ACCEPT_P99_MS_MAX = 250
SHIPPED = "deliveries taken in"
ALONE = "deliveries taken in, none handed on"
CEILING = "deliveries only verified"

Say = Callable[[str], None]


@dataclass(frozen=True)
class IngressPlan:
    """How long each measurement of the ingress takes."""

    rounds: int
    seconds: float
    warm_seconds: float
    latency_rounds: int
    latency_seconds: float
    applied_seconds: float
    idle_seconds: float
    drain_seconds: float
    customers: int
    # Of which kinds of deliveries a backlog is made, one after the other.
    backlogs: tuple[str, ...]
    # What is left of it after these seconds is drained and counted as well.
    drains_all: bool
    backlog: int = 10_000


PLANS = {
    "quick": IngressPlan(
        rounds=5,
        seconds=2,
        warm_seconds=0.5,
        latency_rounds=3,
        latency_seconds=5,
        applied_seconds=20,
        idle_seconds=20,
        drain_seconds=25,
        customers=200,
        backlogs=("renewals",),
        drains_all=False,
    ),
    "full": IngressPlan(
        rounds=7,
        seconds=5,
        warm_seconds=1,
        latency_rounds=5,
        latency_seconds=15,
        applied_seconds=60,
        idle_seconds=60,
        drain_seconds=45,
        customers=500,
        backlogs=("renewals", "charges"),
        drains_all=True,
    ),
}
PLANS["long"] = PLANS["full"]


@dataclass(frozen=True)
class Server:
    """Somebody who takes deliveries."""

    address: str
    pid: int
    database: str | None


class Ingress:
    """The room, the same without handing on, and the server that only verifies, round after round."""

    def __init__(self, world: World, plan: IngressPlan, say: Say) -> None:
        self._world, self._plan, self._say = world, plan, say
        self.rates: dict[str, Rate] = {}

    def run(self) -> list[Ratio]:
        with contextlib.ExitStack() as stack, Child("bench.posts") as provider:
            servers = self._servers(stack)
            for number in range(self._plan.rounds):
                # The other way round every second time: what one leaves behind meets each of them.
                for name in list(servers)[:: -1 if number % 2 else 1]:
                    self._throughput(provider, name, servers[name])
            self._say(f"taking in: {self._plan.rounds} rounds are done")
            half = (self.rates[SHIPPED].median or 2.0) / 2
            for number in range(self._plan.latency_rounds):
                for name in (CEILING, SHIPPED):
                    self._latency(provider, name, servers[name], half, number)
        self._say(f"taking in at {half:.0f}/s, open loop: {self._plan.latency_rounds} rounds are done")
        return [
            ratio(f"{SHIPPED} ÷ {CEILING}", self.rates[SHIPPED], self.rates[CEILING], 0.4),
            Ratio(
                "half of capacity: p99 of taking in, ms",
                self.rates[f"half of capacity: {SHIPPED}, p99"].median,
                ACCEPT_P99_MS_MAX,
                at_least=False,
            ),
        ]

    def _servers(self, stack: contextlib.ExitStack) -> dict[str, Server]:
        applier = stack.enter_context(self._world.applier())
        found = {CEILING: Server(*stack.enter_context(self._world.verifier()), None)}
        for name, delivers in ((SHIPPED, True), (ALONE, False)):
            database = self._world.database(f"bench_ingress_{'on' if delivers else 'off'}")
            running = self._world.webhooks(database, applier, delivers=delivers)
            found[name] = Server(*stack.enter_context(running), database)
        return found

    def _throughput(self, provider: Child, name: str, server: Server) -> None:
        with self._proven(name, server) as answers:
            used = seconds_of(server.pid)
            answer = provider.ask(
                do="closed",
                **self._order(server),
                callers=CALLERS,
                warm_seconds=self._plan.warm_seconds,
                seconds=self._plan.seconds,
                ready=round(3000 * (self._plan.seconds + self._plan.warm_seconds)),
            )
            answers.append(answer)
            spent = (seconds_of(server.pid) - used) / (answer["acknowledged"] or 1)
        self._rate(name, "deliveries/s").rounds.append(answer["rate"])
        self._rate(f"{name}: processor time of the server", "µs/delivery").rounds.append(spent * 1e6)
        self._rate(f"{name}: the generator's share of a processor", "").rounds.append(answer["processor"])

    def _latency(self, provider: Child, name: str, server: Server, rate: float, seed: int) -> None:
        with self._proven(name, server) as answers:
            answer = provider.ask(
                do="open",
                **self._order(server),
                rate=rate,
                seconds=self._plan.latency_seconds,
                seed=seed,
                ready=round(rate * self._plan.latency_seconds),
            )
            answers.append(answer)
        for share in ("p50", "p99"):
            self._rate(f"half of capacity: {name}, {share}", "ms").rounds.append(answer[f"{share}_ms"])

    def _order(self, server: Server) -> dict[str, Any]:
        return {"kind": "strangers", "address": server.address, "secret": self._world.webhook_secret}

    @contextlib.contextmanager
    def _proven(self, name: str, server: Server) -> Iterator[list[dict[str, Any]]]:
        """Whatever was acknowledged inside is in the table; what was not handed on is put away for the next."""
        if server.database is None:
            yield []
            return
        answers: list[dict[str, Any]] = []
        with psycopg.connect(self._world.admin_url(server.database), autocommit=True) as db:
            before = _stored(db)
            yield answers
            written = _stored(db) - before
            acknowledged = sum(answer["acknowledged"] for answer in answers)
            refusals = {text: count for answer in answers for text, count in answer["refusals"].items()}
            if refusals:
                self._say(f"{name}: refused {refusals}")
            if written < acknowledged or (written > acknowledged and not refusals):
                raise RuntimeError(f"{acknowledged} deliveries were acknowledged, {written} are stored")
            db.execute("DELETE FROM webhooks.webhook_events WHERE NOT processed")
            db.execute("VACUUM (ANALYZE) webhooks.webhook_events")
        time.sleep(0.3)

    def _rate(self, name: str, unit: str) -> Rate:
        return self.rates.setdefault(name, Rate(name, unit))


def _stored(db: psycopg.Connection[Any]) -> int:
    found = db.execute("SELECT count(*) FROM webhooks.webhook_events").fetchone()
    return int(found[0]) if found else 0
