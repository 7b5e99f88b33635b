"""The five competitors, round after round: interactive, function, unary, batches, echo; and limits beside them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from bench import baseline
from bench.figures import Rate, Ratio, ratio
from bench.world import Child, World

HOT = ["bench-0"]
MANY = [f"bench-{number}" for number in range(1, 1001)]
CROWDS = {"hot tenant": HOT, "1,000 tenants": MANY}
BATCHES = (10, 100, 1000)
ROUNDS = 5
SLOWER_MILLISECONDS = 2
# No more is ever built beforehand; a window that needs more builds the rest as it goes.
READY_ITEMS = 60_000

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How long each measurement takes."""

    seconds: float
    warm_seconds: float
    history: int
    tenants: int
    latency_seconds: float
    latency_rounds: int
    rounds: int = ROUNDS
    hurried: bool = False


class Rounds:
    """Measures every competitor in turn, and checks that what was acknowledged is in the database."""

    def __init__(self, world: World, database: str, plan: Plan, say: Say) -> None:
        self._world, self._database, self._plan, self._say = world, database, plan, say
        self.rates: dict[str, Rate] = {}

    def prepare(self) -> None:
        """The opponents' tables."""
        with psycopg.connect(self._world.admin_url(self._database)) as db:
            db.execute(baseline.TABLES)
            db.execute(baseline.TENANT, [[*HOT, *MANY]])

    def settle(self, load: Child, opponent: Child, ledger: str) -> None:
        """A little of everything, then what autovacuum does within a minute: no table is new, nobody plans blindly."""
        for tenants in CROWDS.values():
            opponent.ask(method="interactive", tenants=tenants, warm_seconds=0, seconds=1)
            order = {"do": "closed", "method": "Debit", "tenants": tenants, "address": ledger}
            load.ask(**order, key=self._world.gateway_key, warm_seconds=0, seconds=1)
        with psycopg.connect(self._world.admin_url(self._database), autocommit=True) as db:
            db.execute("VACUUM (ANALYZE)")

    def run(self, load: Child, opponent: Child, ledger: str, echo: str) -> list[Ratio]:
        for number in range(1, self._plan.rounds + 1):
            for crowd, tenants in CROWDS.items():
                for method in ("interactive", "function"):
                    self._note(
                        f"{crowd}: {method}", opponent.ask(method=method, tenants=tenants, **self._window)
                    )
                self._unary(load, crowd, tenants, ledger)
                order = {"do": "closed", "method": "Debit", "tenants": tenants, "address": echo}
                answer = load.ask(**order, key=self._world.gateway_key, **self._window)
                self._note("echo", answer, unit="calls/s")
                self._limits(load, crowd, tenants, ledger)
                # What they leave the database to do meets the other crowd's first opponent, not the echo.
                for items in BATCHES:
                    if self._plan.hurried and items != 100 and number % 2 == 0:
                        continue  # no ratio asks for these
                    self._batches(load, crowd, tenants, ledger, items)
            self._say(f"round {number} of {self._plan.rounds} is done")
        return self._ratios()

    def run_on_a_slower_disk(self, load: Child, opponent: Child, ledger: str) -> None:
        """The same where a flush of the log takes longer, for information: most disks are not as near as this one."""
        self._world.slow_commits(SLOWER_MILLISECONDS)
        for number in range(1, self._plan.rounds + 1):
            for crowd, tenants in CROWDS.items():
                slow = f"{crowd}, flush + {SLOWER_MILLISECONDS} ms"
                answer = opponent.ask(method="interactive", tenants=tenants, **self._window)
                self._note(f"{slow}: interactive", answer)
                self._unary(load, slow, tenants, ledger)
                self._batches(load, slow, tenants, ledger, 100)
            self._say(f"round {number} of {self._plan.rounds} on a slower disk is done")
        self._world.slow_commits(0)

    def pgbench(self) -> None:
        """The opponent's figure as PostgreSQL's own tool sees it, for information."""
        program = self._world.server.programs.folder / "pgbench"
        for crowd, tenants in CROWDS.items():
            rate = self._rate(f"{crowd}: pgbench, interactive", "debits/s")
            if not program.exists():
                rate.note = "this PostgreSQL came without pgbench"
                continue
            first, last = (tenants[0].removeprefix("bench-"), tenants[-1].removeprefix("bench-"))
            rate.rounds += [self._pgbench(str(program), first, last) for _ in range(3)]

    def _pgbench(self, program: str, first: str, last: str) -> float:
        script = self._world.folder / "pgbench.sql"
        script.write_text(baseline.PGBENCH)
        command = [program, "--no-vacuum", "--protocol", "prepared", "--file", str(script)]
        command += ["--client", str(baseline.POOL_SIZE), "--time", str(max(2, round(self._plan.seconds)))]
        command += ["--define", f"first={first}", "--define", f"last={last}"]
        answer = subprocess.run(
            [*command, self._world.ledger_url(self._database)], capture_output=True, text=True, check=False
        )
        found = re.search(r"tps = ([0-9.]+)", answer.stdout)
        if answer.returncode or not found:
            raise RuntimeError(f"pgbench failed: {answer.stderr}")
        return float(found[1])

    @property
    def _window(self) -> dict[str, float]:
        return {"warm_seconds": self._plan.warm_seconds, "seconds": self._plan.seconds}

    def _unary(self, load: Child, crowd: str, tenants: list[str], ledger: str) -> None:
        order = {"do": "closed", "method": "Debit", "tenants": tenants, "address": ledger}
        before = self._booked()
        answer = load.ask(**order, key=self._world.gateway_key, **self._window)
        self._prove(before, answer)
        self._note(f"{crowd}: Debit", answer)

    def _batches(self, load: Child, crowd: str, tenants: list[str], ledger: str, items: int) -> None:
        name = f"{crowd}: BatchDebit({items:,})"
        if self._rate(name, "debits/s").note:
            return
        order = {
            "do": "closed",
            "method": "BatchDebit",
            "tenants": tenants,
            "address": ledger,
            "items": items,
        }
        before = self._booked()
        answer = load.ask(**order, ready=READY_ITEMS // items, key=self._world.gateway_key, **self._window)
        if not answer["acknowledged"] and "UNIMPLEMENTED" in answer["refusals"]:
            self.rates[name].note = "not served"
            return
        self._prove(before, answer)
        self._note(name, answer)

    def _limits(self, load: Child, crowd: str, tenants: list[str], ledger: str) -> None:
        for name, staleness in (("fresh", 0), ("≤ 1 s old", 1000)):
            order = {"do": "closed", "method": "CheckLimit", "tenants": tenants, "address": ledger}
            answer = load.ask(
                **order, max_staleness_ms=staleness, key=self._world.gateway_key, **self._window
            )
            self._note(f"{crowd}: CheckLimit, {name}", answer, unit="calls/s")

    def _note(self, name: str, answer: dict[str, Any], unit: str = "debits/s") -> None:
        self._rate(name, unit).rounds.append(answer["rate"])
        if answer["refusals"]:
            self._say(f"{name}: refused {answer['refusals']}")

    def _rate(self, name: str, unit: str) -> Rate:
        return self.rates.setdefault(name, Rate(name, unit))

    def _booked(self) -> int:
        """How many debits the ledger has written: each is one line here, since one lot serves them all."""
        with psycopg.connect(self._world.admin_url(self._database)) as db:
            found = db.execute("SELECT sum(seq) FROM ledger.tenant_credits").fetchone()
        return int(found[0]) if found else 0

    def _prove(self, before: int, answer: dict[str, Any]) -> None:
        written = self._booked() - before
        unsure = sum(
            count for code, count in answer["refusals"].items() if code not in {"RESOURCE_EXHAUSTED"}
        )
        if written < answer["acknowledged"] or (written > answer["acknowledged"] and not unsure):
            raise RuntimeError(f"{answer['acknowledged']} debits were acknowledged, {written} are written")

    def _ratios(self) -> list[Ratio]:
        found = []
        for crowd, batched, unary in (("hot tenant", 20.0, 4.0), ("1,000 tenants", 5.0, 1.5)):
            interactive = self.rates[f"{crowd}: interactive"]
            found += [
                ratio(
                    f"{crowd}: BatchDebit(100) ÷ interactive",
                    self.rates[f"{crowd}: BatchDebit(100)"],
                    interactive,
                    batched,
                ),
                ratio(f"{crowd}: Debit ÷ interactive", self.rates[f"{crowd}: Debit"], interactive, unary),
            ]
        echo = self.rates["echo"]
        found.append(ratio("1,000 tenants: Debit ÷ echo", self.rates["1,000 tenants: Debit"], echo, 0.5))
        for crowd in CROWDS:
            for name, goal in (("≤ 1 s old", 0.8), ("fresh", 0.35)):
                found.append(
                    ratio(
                        f"{crowd}: CheckLimit, {name} ÷ echo",
                        self.rates[f"{crowd}: CheckLimit, {name}"],
                        echo,
                        goal,
                    )
                )
        return found
