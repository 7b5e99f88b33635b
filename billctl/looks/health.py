"""Runbooks 0 and 8: is it billing? Every signal is looked at, whatever the others say, and the worst is the verdict."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cronsim import CronSim, CronSimError

from billctl.desk import Desk, NoDatabase
from billctl.diagnosis import Section, Verdict, View
from billctl.looks import rooms, signals
from billctl.screen import shown

NOT_BILLING = "probably not billing: look at the gateway, auth or the service first"
CRITICAL_SIGNATURES = 10  # in an hour, as the alert counts
PATIENT_SECONDS = 300.0  # a delivery is handed on within moments, and repeated within minutes
LOST_SECONDS = 1800.0
# A tick is claimed within a second; a scheduler that restarts needs some.
LATE = timedelta(minutes=2)
WORST_LAST = (Verdict.OK, Verdict.WARNING, Verdict.UNKNOWN, Verdict.CRITICAL)

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Signal:
    """One line of the screen, and the rows behind it."""

    key: str
    name: str
    runbook: str
    state: Verdict
    value: str
    next: str = ""
    evidence: Sequence[Section] = ()


async def show(desk: Desk, *, everything: bool) -> View:
    """The screen. Rows behind signals that are well are shown where everything is asked for."""
    found = await asyncio.gather(*(look(desk) for look in LOOKS))
    lines = [
        {
            "signal": each.name,
            "state": each.state.value,
            "value": each.value,
            "next": each.next,
            "runbook": each.runbook,
        }
        for each in found
    ]
    sections = [Section("signals", "billing health", lines, "the statements below")]
    for each in found:
        sections += [
            part
            for part in each.evidence
            if everything or (part.rows and (each.state is not Verdict.OK or each.key == "changes"))
        ]
    ill = sorted(
        (each for each in found if each.state is not Verdict.OK),
        key=lambda each: -WORST_LAST.index(each.state),
    )
    if not ill:
        return View("billing", sections, Verdict.OK, f"all {len(found)} signals are well; {NOT_BILLING}")
    return View(
        "billing",
        sections,
        ill[0].state,
        f"{len(ill)} of {len(found)} signals are not well: {', '.join(each.name for each in ill)}",
        list(dict.fromkeys(each.next for each in ill if each.next)),
    )


Look = Callable[[Desk], Awaitable[Signal]]


def _from_database(key: str, name: str, runbook: str) -> Callable[[Look], Look]:
    """A look that the database must answer; without it nobody knows."""

    def wrap(look: Look) -> Look:
        async def guarded(desk: Desk) -> Signal:
            try:
                return await look(desk)
            except NoDatabase:
                return Signal(key, name, runbook, Verdict.UNKNOWN, "the database does not answer")

        return guarded

    return wrap


async def _rooms(desk: Desk) -> Signal:
    rows = await rooms.ask(desk.connections.addresses)
    away = [f"{row['room']} {row['says']}" for row in rows if row["says"] != "serving"]
    slowest = max(row["milliseconds"] for row in rows)
    evidence = [Section("rooms", "rooms", rows, rooms.SOURCE)]
    if away:
        return Signal(
            *("rooms", "rooms serving", "8", Verdict.CRITICAL, ", ".join(away)),
            next="restart what is down and read its log; what waits is done afterwards by itself",
            evidence=evidence,
        )
    value = f"all {len(rows)}, slowest {slowest:.0f} ms"
    return Signal("rooms", "rooms serving", "8", Verdict.OK, value, evidence=evidence)


async def _database(desk: Desk) -> Signal:
    statement = "SELECT current_setting('server_version') AS version, NOW() AS now;"
    try:
        rows = await desk.rows(statement)
    except NoDatabase as error:
        mend = "is PostgreSQL up? every room waits for it and goes on by itself"
        return Signal("database", "database", "8", Verdict.CRITICAL, str(error), mend)
    evidence = [Section("database", "database", rows, statement)]
    return Signal(
        "database", "database", "8", Verdict.OK, f"PostgreSQL {rows[0]['version']}", evidence=evidence
    )


@_from_database("reconciliation", "reconciliation queue", "0")
async def _reconciliation(desk: Desk) -> Signal:
    (count,) = rows = await desk.rows(signals.PENDING)
    abandoned, overdue = await desk.rows(signals.ABANDONED), await desk.rows(signals.OVERDUE)
    state, step = Verdict.OK, ""
    if overdue:
        state, step = Verdict.WARNING, "billctl jobs run reconcile"
    if count["abandoned"]:
        state, step = Verdict.CRITICAL, "billctl tasks list --state abandoned"
    value = f"{count['pending']} pending, {count['abandoned']} abandoned"
    if overdue:
        value += f", the oldest due for {shown(overdue[0]['overdue_by'])}"
    evidence = [
        Section("reconciliation", "reconciliation queue", rows, signals.PENDING),
        Section("abandoned_tasks", "tasks that were given up", abandoned, signals.ABANDONED),
        Section("overdue_tasks", "tasks that nobody attempts", overdue, signals.OVERDUE),
    ]
    return Signal("reconciliation", "reconciliation queue", "0", state, value, step, evidence)


@_from_database("findings", "open findings", "2")
async def _findings(desk: Desk) -> Signal:
    counts = await desk.rows(signals.FINDINGS)
    worst = await desk.rows(signals.WORST_FINDINGS)
    evidence = [
        Section("findings", "open findings by check", counts, signals.FINDINGS),
        Section("worst_findings", "the most severe of them", worst, signals.WORST_FINDINGS),
    ]
    if not worst:
        return Signal("findings", "open findings", "2", Verdict.OK, "none", evidence=evidence)
    critical = worst[0]["severity"] == "critical"
    value = ", ".join(f"{row['count']} {row['check_type']}" for row in counts[:4])
    value += f", and {len(counts) - 4} checks more" if len(counts) > 4 else ""
    state = Verdict.CRITICAL if critical else Verdict.WARNING
    step = f"billctl fix finding {worst[0]['id']}"
    return Signal("findings", "open findings", "2", state, value, step, evidence)


@_from_database("signatures", "signature failures, 1 h", "3")
async def _signatures(desk: Desk) -> Signal:
    rows = await desk.rows(signals.SIGNATURES)
    evidence = [
        Section("signature_failures", "signature failures of the last hour", rows, signals.SIGNATURES)
    ]
    per_door: dict[str, int] = {}
    for row in rows:
        door = row["endpoint"] if row["endpoint"] == "webhook" else f"{row['endpoint']} {row['tenant_id']}"
        per_door[door] = per_door.get(door, 0) + row["n"]
    if not rows:
        return Signal("signatures", "signature failures, 1 h", "3", Verdict.OK, "none", evidence=evidence)
    spike = max(per_door.values()) >= CRITICAL_SIGNATURES
    value = ", ".join(f"{n} on {door}" for door, n in list(per_door.items())[:3])
    state = Verdict.CRITICAL if spike else Verdict.WARNING
    return Signal(
        "signatures", "signature failures, 1 h", "3", state, value, "billctl fix signatures", evidence
    )


@_from_database("past_due", "past due > 14 days", "6")
async def _past_due(desk: Desk) -> Signal:
    rows = await desk.rows(signals.PAST_DUE)
    evidence = [
        Section(
            *("past_due", "tenants that are past due for more than 14 days", rows[:50], signals.PAST_DUE),
            more=max(0, len(rows) - 50),
        )
    ]
    if not rows:
        return Signal("past_due", "past due > 14 days", "6", Verdict.OK, "none", evidence=evidence)
    return Signal(
        *(
            "past_due",
            "past due > 14 days",
            "6",
            Verdict.CRITICAL,
            f"{len(rows)} tenant{'s' * (len(rows) > 1)}",
        ),
        next="billctl fix escalation",
        evidence=evidence,
    )


@_from_database("backlog", "webhook backlog", "5b")
async def _backlog(desk: Desk) -> Signal:
    (row,) = rows = await desk.rows(signals.BACKLOG)
    evidence = [Section("backlog", "webhook events that wait", rows, signals.BACKLOG)]
    age = float(row["oldest_seconds"] or 0)
    state = Verdict.OK
    if age > PATIENT_SECONDS:
        state = Verdict.CRITICAL if age > LOST_SECONDS else Verdict.WARNING
    value = f"{row['waiting']} wait"
    value += f", the oldest for {shown(timedelta(seconds=age))}" if row["waiting"] else ""
    step = "" if state is Verdict.OK else "billctl fix backlog"
    return Signal("backlog", "webhook backlog", "5b", state, value, step, evidence)


@_from_database("dead_letters", "dead letters", "5b")
async def _dead_letters(desk: Desk) -> Signal:
    rows = await desk.rows(signals.DEAD_LETTERS)
    evidence = [Section("dead_letters", "dead letters", rows, signals.DEAD_LETTERS)]
    if not rows:
        return Signal("dead_letters", "dead letters", "5b", Verdict.OK, "none", evidence=evidence)
    value = ", ".join(f"{row['n']} {row['reason']}" for row in rows[:3])
    return Signal(
        "dead_letters", "dead letters", "5b", Verdict.WARNING, value, "billctl fix backlog", evidence
    )


@_from_database("silence", "last payment event", "5")
async def _silence(desk: Desk) -> Signal:
    (row,) = rows = await desk.rows(signals.LAST_EVENT)
    evidence = [Section("last_event", "last payment event", rows, signals.LAST_EVENT)]
    last = row["last_processed_at"]
    value = "none yet"
    if last is not None:
        ago = max(0.0, float(row["seconds_ago"]))
        value = f"{shown(last)}, {shown(timedelta(seconds=ago))} ago"
    if row["silence_alert"]:
        step = "billctl jobs run sync_provider, and see whether the provider's dashboard delivers"
        return Signal("silence", "last payment event", "5", Verdict.WARNING, value, step, evidence)
    return Signal("silence", "last payment event", "5", Verdict.OK, value, evidence=evidence)


@_from_database("jobs", "jobs", "8")
async def _jobs(desk: Desk) -> Signal:
    rows = [row | {"state": job_state(row)} for row in await desk.rows(signals.JOBS)]
    shown_rows = [{name: row[name] for name in row if name not in {"created_at", "now"}} for row in rows]
    evidence = [Section("jobs", "jobs", shown_rows, signals.JOBS)]
    if not rows:
        return Signal(
            *("jobs", "jobs", "8", Verdict.CRITICAL, "none: no scheduler was ever here"), evidence=evidence
        )
    by_state: dict[str, list[str]] = {}
    for row in rows:
        by_state.setdefault(row["state"], []).append(row["job"])
    late, failed, paused = (by_state.get(state, []) for state in ("late", "failed", "paused"))
    value = "; ".join(
        f"{word}: {', '.join(names)}"
        for word, names in (("not run when due", late), ("failed", failed), ("paused", paused))
        if names
    )
    if late:
        step = "is the scheduler up? its log says why it does not run them: billctl jobs list"
        return Signal("jobs", "jobs", "8", Verdict.CRITICAL, value, step, evidence)
    if failed:
        step = f"billctl jobs runs {failed[0]}"
        return Signal("jobs", "jobs", "8", Verdict.WARNING, value, step, evidence)
    if paused:
        step = f"billctl jobs resume {paused[0]}"
        return Signal("jobs", "jobs", "8", Verdict.WARNING, value, step, evidence)
    return Signal(
        "jobs", "jobs", "8", Verdict.OK, f"all {len(rows)} ran when they were due", evidence=evidence
    )


def job_state(row: Mapping[str, Any]) -> str:
    """`paused`, `late` (its tick passed and nobody ran it), `failed` (its newest run), or `ok`."""
    if row["paused"]:
        return "paused"
    tick = due_tick(row["schedule"], row["now"] - LATE)
    if (
        tick is not None
        and tick > row["created_at"]
        and (row["last_tick"] is None or row["last_tick"] < tick)
    ):
        return "late"
    return "failed" if row["last_outcome"] == "failed" else "ok"


def due_tick(schedule: str, moment: datetime) -> datetime | None:
    """The newest tick that is not after this moment; None where the schedule has none."""
    try:
        return next(CronSim(schedule, moment.replace(microsecond=0) + timedelta(seconds=1), reverse=True))
    except (CronSimError, StopIteration):
        return None


@_from_database("alerts", "open alerts", "0")
async def _alerts(desk: Desk) -> Signal:
    rows = await desk.rows(signals.ALERTS)
    evidence = [Section("alerts", "open alerts", rows[:10], signals.ALERTS, more=max(0, len(rows) - 10))]
    critical = sum(row["severity"] == "critical" for row in rows)
    if not rows:
        return Signal("alerts", "open alerts", "0", Verdict.OK, "none", evidence=evidence)
    state = Verdict.CRITICAL if critical else Verdict.WARNING
    value = f"{critical} critical, {len(rows) - critical} warnings"
    return Signal("alerts", "open alerts", "0", state, value, "billctl alerts", evidence)


@_from_database("frozen", "frozen accounts", "2")
async def _frozen(desk: Desk) -> Signal:
    rows = await desk.rows(signals.FROZEN)
    evidence = [Section("frozen", "frozen accounts", rows, signals.FROZEN)]
    if not rows:
        return Signal("frozen", "frozen accounts", "2", Verdict.OK, "none", evidence=evidence)
    value = ", ".join(str(row["tenant_id"]) for row in rows[:3]) + (", …" if len(rows) > 3 else "")
    step = f"billctl findings list --tenant {rows[0]['tenant_id']}"
    return Signal("frozen", "frozen accounts", "2", Verdict.CRITICAL, value, step, evidence)


@_from_database("provider", "payment provider", "8")
async def _provider(desk: Desk) -> Signal:
    rows = await desk.rows(signals.PROVIDER)
    evidence = [
        Section("provider", "calls to the provider that fail and are repeated", rows, signals.PROVIDER)
    ]
    if not rows:
        return Signal(
            "provider", "payment provider", "8", Verdict.OK, "no call waits to be repeated", evidence=evidence
        )
    value = f"{sum(row['tasks'] for row in rows)} calls fail: {rows[0]['last_error'] or 'no reason'}"
    step = "the provider's status page; its calls are repeated by themselves: billctl tasks list"
    return Signal("provider", "payment provider", "8", Verdict.WARNING, value, step, evidence)


@_from_database("changes", "changes by people, 24 h", "8")
async def _changes(desk: Desk) -> Signal:
    rows = await desk.rows(signals.CHANGES)
    evidence = [Section("changes", "changes by people in the last 24 hours", rows, signals.CHANGES)]
    value = f"{len(rows)}{' or more' if len(rows) == 10 else ''}" if rows else "none"
    if rows:
        value += f", the last {rows[0]['action']} by {rows[0]['actor_id']}"
    return Signal("changes", "changes by people, 24 h", "8", Verdict.OK, value, evidence=evidence)


LOOKS: tuple[Look, ...] = (
    *(_rooms, _database, _reconciliation, _findings, _signatures, _past_due, _backlog, _dead_letters),
    *(_silence, _jobs, _alerts, _frozen, _provider, _changes),
)
