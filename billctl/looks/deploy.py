"""After a deploy: is everything there, and has time begun to pass?"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from alembic.script import ScriptDirectory

from billctl.desk import Desk, NoDatabase
from billctl.diagnosis import Section, Verdict, View
from billctl.looks import rooms, signals
from billctl.looks.health import WORST_LAST, job_state
from billctl.screen import shown
from shared.migrations import Schema
from suite.migrate import SCHEMAS

# As the checklist has them, letter by letter.
TABLES = """
SELECT table_name FROM information_schema.tables
WHERE table_name IN (
'billing_reconciliation_queue',
'billing_signature_failures',
'billing_integrity_reports',
'billing_notifications',
'rate_limit_buckets'
);
"""
CREDIT_COLUMNS = """
SELECT column_name FROM information_schema.columns
WHERE table_name = 'tenant_credits';
"""
PENDING_COLUMNS = """
SELECT column_name FROM information_schema.columns
WHERE table_name = 'subscriptions'
AND column_name IN ('pending_razorpay_subscription_id',
'pending_billing_cycle', 'past_due_since');
"""
LAST_EVENT = "SELECT MAX(processed_at) FROM processed_payment_events;"

REVISIONS = """
SELECT 'ops' AS schema, version_num AS revision FROM ops.alembic_version
UNION ALL SELECT 'ledger', version_num FROM ledger.alembic_version
UNION ALL SELECT 'subscriptions', version_num FROM subscriptions.alembic_version
UNION ALL SELECT 'webhooks', version_num FROM webhooks.alembic_version
UNION ALL SELECT 'scheduler', version_num FROM scheduler.alembic_version;
"""
# The first cron tick should come within ten minutes; two jobs have one every minute.
TICKS = """
SELECT job, scheduled_for, started_at, finished_at, outcome
FROM job_runs
WHERE trigger = 'schedule' AND started_at > NOW() - INTERVAL '10 minutes' AND started_at <= NOW()
ORDER BY id DESC
LIMIT 5;
"""
EXPECTED_TABLES = {
    *("billing_reconciliation_queue", "billing_signature_failures", "billing_integrity_reports"),
    *("billing_notifications", "rate_limit_buckets"),
}
EXPECTED_CREDIT_COLUMNS = {"subscription_balance", "subscription_expires_at", "permanent_balance"}
EXPECTED_PENDING_COLUMNS = {
    "pending_razorpay_subscription_id",
    "pending_billing_cycle",
    "past_due_since",
}
MIGRATE = "run the migrations: python -m suite migrate"

Line = tuple[dict[str, Any], Section]


async def show(desk: Desk, *, everything: bool) -> View:
    """The screen; rows behind what is well are shown where everything is asked for."""
    found: list[Line] = [await _rooms(desk)]
    for look in (_tables, _credit_columns, _pending_columns, _revisions, _ticks, _jobs, _last_event):
        try:
            found.append(await look(desk))
        except NoDatabase as error:
            line = _line("database", Verdict.CRITICAL, str(error), "is PostgreSQL up?")
            found.append((line, Section("database", "database", [], "")))
            break
    lines = [line for line, _section in found]
    ill = [line for line in lines if line["state"] != Verdict.OK.value]
    verdict = max((Verdict(line["state"]) for line in lines), key=WORST_LAST.index)
    sections = [Section("checks", "after the deploy", lines, "the statements below")]
    sections += [
        part for line, part in found if everything or (part.rows and line["state"] != Verdict.OK.value)
    ]
    if not ill:
        words = "everything is there and time passes; now the smoke test of the runbook's last step"
        return View("deploy", sections, verdict, words)
    summary = f"{len(ill)} of {len(lines)} checks are not well: {', '.join(line['check'] for line in ill)}"
    steps = list(dict.fromkeys(line["next"] for line in ill if line["next"]))
    return View("deploy", sections, verdict, summary, steps)


def _line(check: str, state: Verdict, value: str, step: str = "") -> dict[str, Any]:
    return {"check": check, "state": state.value, "value": value, "next": step}


async def _rooms(desk: Desk) -> Line:
    rows = await rooms.ask(desk.connections.addresses)
    away = [f"{row['room']} {row['says']}" for row in rows if row["says"] != "serving"]
    section = Section("rooms", "rooms", rows, rooms.SOURCE)
    if away:
        step = "read the log of what is down; docs/rollback.md if it does not come up"
        return _line("rooms serving", Verdict.CRITICAL, ", ".join(away), step), section
    return _line("rooms serving", Verdict.OK, f"all {len(rows)}"), section


async def _tables(desk: Desk) -> Line:
    rows = await desk.rows(TABLES)
    return _compared("tables", rows, "table_name", EXPECTED_TABLES, TABLES)


async def _credit_columns(desk: Desk) -> Line:
    rows = await desk.rows(CREDIT_COLUMNS)
    return _compared("credit_columns", rows, "column_name", EXPECTED_CREDIT_COLUMNS, CREDIT_COLUMNS)


async def _pending_columns(desk: Desk) -> Line:
    rows = await desk.rows(PENDING_COLUMNS)
    return _compared("pending_columns", rows, "column_name", EXPECTED_PENDING_COLUMNS, PENDING_COLUMNS)


def _compared(
    key: str, rows: Sequence[Mapping[str, Any]], column: str, expected: set[str], source: str
) -> Line:
    missing = sorted(expected - {row[column] for row in rows})
    name = key.replace("_", " ")
    section = Section(key, name, rows, source)
    if missing:
        return _line(name, Verdict.CRITICAL, f"missing: {', '.join(missing)}", MIGRATE), section
    return _line(name, Verdict.OK, f"all {len(expected)} are there"), section


async def _revisions(desk: Desk) -> Line:
    there = {row["schema"]: row["revision"] for row in await desk.rows(REVISIONS)}
    expected = await asyncio.to_thread(lambda: {schema.name: _revisions_of(schema) for schema in SCHEMAS})
    rows = [
        {
            "schema": name,
            "revision": there.get(name),
            "expected": known[-1],
            "state": _standing(there.get(name), known),
        }
        for name, known in expected.items()
    ]
    section = Section("revisions", "migrations", rows, REVISIONS)
    behind = [f"{row['schema']} {row['revision']}" for row in rows if row["state"] == "behind"]
    newer = [f"{row['schema']} {row['revision']}" for row in rows if row["state"] == "newer"]
    if behind:
        return _line("migrations", Verdict.CRITICAL, f"behind: {', '.join(behind)}", MIGRATE), section
    if newer:
        words = f"newer than this checkout: {', '.join(newer)}"
        return _line("migrations", Verdict.WARNING, words, "is this the checkout that was deployed?"), section
    value = ", ".join(f"{row['schema']} {row['revision']}" for row in rows)
    return _line("migrations", Verdict.OK, value), section


def _standing(revision: str | None, known: Sequence[str]) -> str:
    """Migrations only add: a newer schema serves the release before it, an older one does not serve this."""
    if revision == known[-1]:
        return "ok"
    return "behind" if revision is None or revision in known else "newer"


def _revisions_of(schema: Schema) -> list[str]:
    """Every revision of this checkout, the oldest first."""
    scripts = ScriptDirectory(str(schema.path), version_locations=[str(schema.path / "versions")])
    return [script.revision for script in scripts.walk_revisions()][::-1]


async def _ticks(desk: Desk) -> Line:
    rows = await desk.rows(TICKS)
    section = Section("ticks", "the newest ticks of the last ten minutes", rows, TICKS)
    if not rows:
        step = "wait until ten minutes have passed; then: is the scheduler up, are its jobs paused?"
        return _line("first cron tick", Verdict.CRITICAL, "none in the last ten minutes", step), section
    return _line(
        "first cron tick", Verdict.OK, f"{rows[0]['job']} at {shown(rows[0]['started_at'])}"
    ), section


async def _jobs(desk: Desk) -> Line:
    rows = []
    for row in await desk.rows(signals.JOBS):
        state = job_state(row)
        waits = state == "ok" and row["last_tick"] is None
        rows.append(
            {
                "job": row["job"],
                "state": "not due yet" if waits else state,
                "schedule": row["schedule"],
                "last_finished_at": row["last_finished_at"],
                "last_outcome": row["last_outcome"],
            }
        )
    section = Section("jobs", "jobs", rows, signals.JOBS)
    ill = [f"{row['job']} {row['state']}" for row in rows if row["state"] not in {"ok", "not due yet"}]
    waiting = sum(row["state"] == "not due yet" for row in rows)
    if not rows or ill:
        worst = not rows or any("late" in each for each in ill)
        state = Verdict.CRITICAL if worst else Verdict.WARNING
        return _line("every job ran", state, ", ".join(ill) or "there are none", "billctl jobs list"), section
    value = f"all {len(rows)}" if not waiting else f"{len(rows) - waiting}; {waiting} not due yet"
    return _line("every job ran", Verdict.OK, value), section


async def _last_event(desk: Desk) -> Line:
    rows = await desk.rows(LAST_EVENT)
    section = Section("last_event", "last payment event", rows, LAST_EVENT)
    last = rows[0]["max"]
    return _line("last payment event", Verdict.OK, shown(last) if last else "none yet"), section
