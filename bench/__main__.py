"""`python -m bench`: measures, prints two tables and writes results/latest.json."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import figures, ingress, world
from bench.figures import Rate, Ratio
from bench.growth import Growth
from bench.handover import Handover
from bench.ingress import Ingress, IngressPlan
from bench.latency import Latency
from bench.rounds import HOT, MANY, Plan, Rounds
from bench.world import Child, World

RESULTS = Path(__file__).parent / "results"
PARTS = ("ledger", "webhooks")
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


def main(length: str, only: str) -> None:
    """One run from an empty folder to the tables; of one part, where one is named."""
    began_at = time.monotonic()
    rates: list[Rate] = []
    ratios: list[Ratio] = []
    with world.new() as here:
        machine = world.machine(here.admin_url("postgres"))
        say(f"measuring on {machine}; load average {world.load_average()}")
        here.wear_in()
        if only in ("", "ledger"):
            for part in (throughput, cost):
                more_rates, more_ratios = part(here, PLANS[length])
                rates, ratios = rates + more_rates, ratios + more_ratios
        if only in ("", "webhooks"):
            more_rates, more_ratios = deliveries(here, ingress.PLANS[length])
            rates, ratios = rates + more_rates, ratios + more_ratios
    show(rates, ratios)
    results = RESULTS / f"{only or 'latest'}.json"
    results.parent.mkdir(exist_ok=True)
    content = figures.report(machine, ratios, rates)
    results.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    minutes = (time.monotonic() - began_at) / 60
    say(
        f"took {minutes:.1f} minutes; written to bench/results/{results.name}; load average {world.load_average()}"
    )


def deliveries(here: World, plan: IngressPlan) -> tuple[list[Rate], list[Ratio]]:
    """What the ingress takes in, and what becomes of it in the rooms behind."""
    taking_in = Ingress(here, plan, say)
    ratios = taking_in.run()
    rates = list(taking_in.rates.values())
    for kind in plan.backlogs:
        behind = Handover(here, plan, say, kind=kind)
        ratios += behind.run()
        rates += behind.rates.values()
    return rates, ratios


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
    table = Table(title="ratios of medians, and figures with a limit of their own where the name has a unit")
    for name in ("what", "value", "goal", ""):
        table.add_column(name, justify="left" if name in {"what", ""} else "right")
    for each in ratios:
        value = "–" if each.value is None else f"{each.value:.2f}"
        table.add_row(each.name, value, each.wish, "met" if each.met else "NOT MET")
    console.print(table)


def say(sentence: str) -> None:
    console.print(sentence, highlight=False)


if __name__ == "__main__":
    length, only = (*sys.argv[1:3], *("full", "")[len(sys.argv[1:3]) :])
    if only not in ("", *PARTS):
        sys.exit(f"there is no part {only}: {', '.join(PARTS)}")
    main(length, only)
