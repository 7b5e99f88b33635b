"""`python -m tests.year`: the year, its summary, and what is wrong with it."""

from __future__ import annotations

import os

# Read when grpc is imported: the program forks only to start others, and grpc would complain of it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

import asyncio
import json
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from tests.suite.running import RunningSuite
from tests.year.checks.all import wrong_with
from tests.year.days import Plan, Year
from tests.year.evidence import gather, told_by
from tests.year.place import Place, keep_log, place_in, running_suite
from tests.year.tally import Tally

OURS = (
    "LEDGER_",
    "SUBSCRIPTIONS_",
    "WEBHOOKS_",
    "SCHEDULER_",
    "SANDBOX_",
    "RAZORPAY_",
    "BILLING_",
    "OPERATOR_",
)
SHOWN_MAX = 40


def main() -> int:
    """0 when the year ended as it must."""
    for name in [name for name in os.environ if name.startswith(OURS) or name == "DATABASE_URL"]:
        del os.environ[name]
    tenants = _number("TENANTS", 100)
    plan = Plan(
        tenants=tenants,
        days=_number("DAYS", 365),
        seed=_number("SEED", random.randrange(1, 10**6)),
        kills=_number("KILLS", 1 + tenants // 50),
    )
    console = Console()
    repeat = f"make year TENANTS={plan.tenants} DAYS={plan.days} SEED={plan.seed} KILLS={plan.kills}"
    console.print(
        f"{plan.tenants} tenants, {plan.days} days, seed {plan.seed}; again: [bold]{repeat}[/]",
        highlight=False,
    )
    began = time.monotonic()
    try:
        with running_suite() as suite:
            wrong, tally, counted = asyncio.run(_live(suite, plan, console))
            if wrong:
                keep_log(suite.log)
    except Exception:
        traceback.print_exc()
        console.print(f"[red]✗ The year broke off.[/] Again: {repeat}", highlight=False)
        return 1
    _summary(console, tally)
    for what, numbers in counted.items():
        console.print(
            f"{what}: " + ", ".join(f"{name} {number}" for name, number in numbers.most_common()),
            highlight=False,
        )
    for each in wrong[:SHOWN_MAX]:
        console.print(f"[red]✗[/] {each}", highlight=False, markup=True)
    if wrong:
        more = f" ({len(wrong) - SHOWN_MAX} more)" if len(wrong) > SHOWN_MAX else ""
        console.print(f"[red]{len(wrong)} things are wrong{more}.[/] Again: {repeat}", highlight=False)
        return 1
    console.print(
        f"[green]✓[/] Everything is as it must be, after {time.monotonic() - began:.0f} s.", highlight=False
    )
    return 0


def _number(name: str, default: int) -> int:
    value = os.environ.get(name) or str(default)
    if not value.isdigit():
        sys.exit(f"{name}={value}: it must be a whole number")
    return int(value)


async def _live(
    suite: RunningSuite, plan: Plan, console: Console
) -> tuple[list[str], Tally, dict[str, Counter[str]]]:
    async with place_in(suite) as place:
        with _bar(console) as bar:
            task = bar.add_task("days", total=plan.days)
            year = Year(place, plan, progress=lambda day: _advance(console, bar, task, place, day))
            told = await year.run()
        evidence = await gather(place, told)
    wrong = wrong_with(evidence)
    if wrong:
        found = Path(tempfile.gettempdir()) / "billing-year.json"
        found.write_text(json.dumps({**vars(evidence), "debits": None, "adjustments": None}, default=str))
        console.print(f"What was found: {found}", highlight=False)
    return wrong, place.tally, told_by(evidence)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _advance(console: Console, bar: Progress, task: object, place: Place, day: int) -> None:
    bar.update(task, completed=day, description=f"{place.now():%d %b %Y}")  # type: ignore[arg-type]
    if not console.is_terminal and day % 30 == 0:
        console.print(f"day {day}: {place.now():%d %b %Y}", highlight=False)


def _summary(console: Console, tally: Tally) -> None:
    table = Table(title="What happened", title_justify="left")
    for column in ("what", "answered", "refused", "repeated", "seconds"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name in sorted({*tally.answers, *(name for name, _ in tally.refusals), *tally.spent_seconds}):
        refused = sum(number for (whose, _), number in tally.refusals.items() if whose == name)
        table.add_row(
            name,
            str(tally.answers[name]),
            str(refused),
            str(tally.repeats[name]),
            f"{tally.spent_seconds.get(name, 0):.1f}",
        )
    console.print(table)
    reasons = sorted(tally.refusals.items(), key=lambda item: -item[1])
    console.print(
        "Refusals: " + ", ".join(f"{whose} {why} {number}" for (whose, why), number in reasons),
        highlight=False,
    )
    acts = ", ".join(f"{name} {number}" for name, number in sorted(tally.acts.items()))
    console.print(f"Acts: {acts}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
