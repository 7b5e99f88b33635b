"""How long callers wait while the ledger is half busy, and what one tenant's flood does to another's waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.figures import Rate, Ratio, ratio
from bench.rounds import HOT, MANY, Plan
from bench.world import Child, World

VICTIM = [MANY[0]]


class Latency:
    """Open loops: arrivals that wait for nobody, latencies from the moment each call was due."""

    def __init__(self, world: World, plan: Plan, capacity: float, say: Callable[[str], None]) -> None:
        self._world, self._plan, self._say = world, plan, say
        self._capacity = capacity
        self.rates: dict[str, Rate] = {}

    def run(self, load: Child, flood: Child, ledger: str, echo: str) -> list[Ratio]:
        half, share = self._capacity / 2, self._capacity / 20
        self._say(f"open loop at {half:.0f} calls/s; flood of {10 * share:.0f}/s beside {share:.0f}/s")
        for number in range(self._plan.latency_rounds):
            for name, address in (("echo", echo), ("Debit", ledger)):
                answer = load.ask(**self._order(address, MANY, half, number))
                self._note(f"half of capacity: {name}", answer)
            self._note("one tenant, alone", load.ask(**self._order(ledger, VICTIM, share, number)))
            flood.send(**self._order(ledger, HOT, 10 * share, number + 100))
            answer = load.ask(**self._order(ledger, VICTIM, share, number))
            self._note("one tenant, beside a flood", answer)
            self._note("the flood itself", flood.receive())
        return [
            ratio(
                "half of capacity: p99 of Debit ÷ p99 of echo",
                self.rates["half of capacity: Debit, p99"],
                self.rates["half of capacity: echo, p99"],
                3,
                at_least=False,
            ),
            ratio(
                "one tenant's p99 beside another's flood of 10 × ÷ alone",
                self.rates["one tenant, beside a flood, p99"],
                self.rates["one tenant, alone, p99"],
                2,
                at_least=False,
            ),
        ]

    def _order(self, address: str, tenants: list[str], rate: float, seed: int) -> dict[str, Any]:
        return {
            "do": "open",
            "method": "Debit",
            "address": address,
            "key": self._world.gateway_key,
            "tenants": tenants,
            "rate": rate,
            "seconds": self._plan.latency_seconds,
            "seed": seed,
        }

    def _note(self, name: str, answer: dict[str, Any]) -> None:
        for share in ("p50", "p99"):
            rate = self.rates.setdefault(f"{name}, {share}", Rate(f"{name}, {share}", "ms"))
            rate.rounds.append(answer[f"{share}_ms"])
        if answer["refusals"]:
            self._say(f"{name}: refused {answer['refusals']}")
