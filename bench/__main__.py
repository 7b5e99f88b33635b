"""`python -m bench`: measures, prints two tables and writes results/latest.json."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import figures, world
from bench.figures import Rate, Ratio
from bench.growth import Growth
from bench.latency import Latency
from bench.rounds import HOT, MANY, Plan, Rounds
from bench.world import Child, World

RESULTS = Path(__file__).parent / "results" / "latest.json"
PLANS = {
    "quick": Plan(
        hurried=True,
        seconds=1.2,
        warm_seconds=0.2,
        history=10**5,
        tenants=10**5,
        latency_seconds=3,
        latency_rounds=2,
    ),
    "full": Plan(
        seconds=4, warm_seconds=1, history=10**6, tenants=10**5, latency_seconds=15, latency_rounds=5
    ),
    "long": Plan(
        seconds=4, warm_seconds=1, history=10**7, tenants=10**5, latency_seconds=15, latency_rounds=5
    ),
}

console = Console()


def main(plan: Plan) -> None:
    """One run from an empty folder to the tables."""
    began_at = time.monotonic()
    with world.new() as here:
        say(f"measuring on {world.machine(here.admin_url('postgres'))}")
        here.wear_in()
        rates, ratios = throughput(here, plan)
        more_rates, more_ratios = cost(here, plan)
        rates, ratios = rates + more_rates, ratios + more_ratios
        content = figures.report(world.machine(here.admin_url("postgres")), ratios, rates)
    show(rates, ratios)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    say(f"took {(time.monotonic() - began_at) / 60:.1f} minutes; written to bench/results/latest.json")


def throughput(here: World, plan: Plan) -> tuple[list[Rate], list[Ratio]]:
    """The closed loops of 64 callers."""
    database = here.database("bench_rates")
    rounds = Rounds(here, database, plan, say)
    rounds.prepare()
    with (
        here.ledger(database) as ledger,
        here.echo() as echo,
        Child("bench.load") as load,
        Child("bench.baseline", here.ledger_url(database)) as opponent,
    ):
        load.ask(do="provision", address=ledger, key=here.room_key, tenants=[*HOT, *MANY])
        rounds.settle(load, opponent, ledger)
        ratios = rounds.run(load, opponent, ledger, echo)
        rounds.pgbench()
        rounds.run_on_a_slower_disk(load, opponent, ledger)
        capacity = rounds.rates["1,000 tenants: Debit"].median or 1.0
        latency = Latency(here, plan, capacity, say)
        with Child("bench.load") as flood:
            ratios += latency.run(load, flood, ledger, echo)
    return [*rounds.rates.values(), *latency.rates.values()], ratios


def cost(here: World, plan: Plan) -> tuple[list[Rate], list[Ratio]]:
    """What a debit touches when there is much history, or when there are many tenants."""
    growth = Growth(here, plan, say)
    with Child("bench.load") as load:
        ratios = growth.run(load)
    return list(growth.rates.values()), ratios


def show(rates: list[Rate], ratios: list[Ratio]) -> None:
    """The tables for people."""
    table = Table(title="rates: median of the rounds, smallest to largest")
    for name in ("what", "median", "min", "max", "unit"):
        table.add_column(name, justify="left" if name in {"what", "unit"} else "right")
    for rate in rates:
        line = rate.as_json()
        values = [f"{line[name]:g}" if line[name] is not None else "–" for name in ("median", "min", "max")]
        table.add_row(rate.name, *values, rate.note or rate.unit)
    console.print(table)
    table = Table(title="ratios of medians")
    for name in ("what", "value", "goal", ""):
        table.add_column(name, justify="left" if name in {"what", ""} else "right")
    for each in ratios:
        value = "–" if each.value is None else f"{each.value:.2f}"
        table.add_row(each.name, value, each.wish, "met" if each.met else "NOT MET")
    console.print(table)


def say(sentence: str) -> None:
    console.print(sentence, highlight=False)


if __name__ == "__main__":
    main(PLANS[sys.argv[1] if len(sys.argv) > 1 else "full"])
