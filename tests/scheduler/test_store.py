"""Claims, leases and fences against a real database."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from services.scheduler import SCHEMA, actions, tables
from services.scheduler.rules import Alert, Outcome, Run, Severity
from services.scheduler.store import alerts as alert_store
from services.scheduler.store import jobs as job_store
from services.scheduler.store import runs as run_store
from shared.database import create_engine, transaction
from shared.migrations import drift

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
LEASE = timedelta(seconds=15)


async def claim(
    engine: AsyncEngine,
    *,
    job: str = "reconcile",
    tick: datetime = NOON,
    owner: str = "a",
    lease: timedelta = LEASE,
) -> Run | None:
    """Claim a tick in a transaction of its own."""
    async with transaction(engine) as db:
        return await run_store.claim(db, job, tick, owner=owner, lease=lease, now=tick)


async def take_over(engine: AsyncEngine, owner: str) -> list[Run]:
    """Take over what has lapsed, in a transaction of its own."""
    async with transaction(engine) as db:
        return await run_store.take_over(db, ["reconcile"], owner=owner, lease=LEASE, now=NOON)


async def finish(engine: AsyncEngine, run: Run, summary: dict[str, Any]) -> bool:
    """End a run well, in a transaction of its own."""
    async with transaction(engine) as db:
        return await run_store.finish(db, run, outcome=Outcome.SUCCEEDED, summary=summary, now=NOON)


@pytest.fixture
async def four(database: Any, engine: AsyncEngine) -> AsyncIterator[list[AsyncEngine]]:
    """Four schedulers' sessions."""
    engines = [
        create_engine(database.url("scheduler_rw"), application_name=f"claimer {number}", pool_size=1)
        for number in range(4)
    ]
    yield engines
    for each in engines:
        await each.dispose()


def test_tables_match_the_migrations(database: Any) -> None:
    assert drift(database.admin_url, SCHEMA, tables.metadata) == []


async def test_of_four_claimers_of_each_tick_one_wins(
    four: list[AsyncEngine], admin: psycopg.Connection
) -> None:
    for minute in range(25):
        tick = NOON + timedelta(minutes=minute)
        claims = await asyncio.gather(
            *(claim(each, tick=tick, owner=str(number)) for number, each in enumerate(four))
        )
        winners = [run for run in claims if run is not None]
        assert len(winners) == 1
        assert winners[0].outcome is None
        await finish(four[0], winners[0], {})
    assert admin.execute("SELECT count(*) FROM job_runs").fetchone() == (25,)


async def test_two_ticks_of_one_job_at_once_never_run_at_once(
    four: list[AsyncEngine], admin: psycopg.Connection
) -> None:
    for hour in range(20):
        ticks = [NOON + timedelta(hours=hour, minutes=minute) for minute in range(4)]
        claims = await asyncio.gather(
            *(claim(each, tick=tick) for each, tick in zip(four, ticks, strict=True))
        )
        running = [run for run in claims if run is not None and run.outcome is None]
        assert len(running) == 1
        for tick, made in zip(ticks, claims, strict=True):
            if made is None:  # it lost the race; a moment later it is claimed as skipped
                again = await claim(four[0], tick=tick)
                assert again is not None
                assert again.outcome is Outcome.SKIPPED
        await finish(four[0], running[0], {})
    outcomes = dict(admin.execute("SELECT outcome, count(*) FROM job_runs GROUP BY outcome").fetchall())
    assert outcomes == {"succeeded": 20, "skipped": 60}


async def test_a_tick_during_a_run_is_recorded_as_skipped_and_other_jobs_go_on(engine: AsyncEngine) -> None:
    await claim(engine)
    skipped = await claim(engine, tick=NOON + timedelta(minutes=5))
    assert skipped is not None
    assert (skipped.outcome, skipped.finished_at) == (Outcome.SKIPPED, NOON + timedelta(minutes=5))
    other = await claim(engine, job="escalation")
    assert other is not None
    assert other.outcome is None


async def test_a_paused_or_unknown_job_is_not_claimed(engine: AsyncEngine) -> None:
    async with transaction(engine) as db:
        assert await job_store.set_paused(db, "reconcile", paused=True) is True
        assert await job_store.set_paused(db, "reconcile", paused=True) is False
    assert await claim(engine) is None
    assert await claim(engine, job="nobody") is None


async def test_a_lapsed_lease_frees_the_run_once_and_its_former_owner_is_refused(
    four: list[AsyncEngine],
) -> None:
    dead = await claim(four[0], lease=timedelta(milliseconds=1))
    assert dead is not None
    await asyncio.sleep(0.01)
    taken = await asyncio.gather(*(take_over(each, f"heir {n}") for n, each in enumerate(four)))
    heirs = [run for runs in taken for run in runs]
    assert len(heirs) == 1
    assert (heirs[0].id, heirs[0].fence, heirs[0].key) == (dead.id, 2, dead.key)
    async with transaction(four[0]) as db:
        assert await run_store.renew(db, dead, lease=LEASE) is False
    assert await finish(four[0], dead, {"by": "the stale owner"}) is False
    assert await finish(four[1], heirs[0], {"by": "the heir"}) is True
    assert await finish(four[1], heirs[0], {"by": "the heir, again"}) is False
    async with transaction(four[2]) as db:
        ended = await run_store.find(db, dead.id)
    assert ended is not None
    assert ended.summary == {"by": "the heir"}


async def test_a_renewed_lease_is_not_taken(engine: AsyncEngine) -> None:
    run = await claim(engine, lease=timedelta(milliseconds=1))
    assert run is not None
    async with transaction(engine) as db:
        assert await run_store.renew(db, run, lease=LEASE) is True
    await asyncio.sleep(0.01)
    assert await take_over(engine, "b") == []


async def test_the_schedule_in_the_database_wins_over_the_one_in_the_code(
    engine: AsyncEngine, admin: psycopg.Connection
) -> None:
    admin.execute("UPDATE jobs SET schedule = '7 7 * * *' WHERE name = 'reconcile'")
    await actions.prepare(engine)
    async with transaction(engine) as db:
        (state,) = await job_store.states(db, ["reconcile"], NOON)
    assert (state.schedule, state.last_tick) == ("7 7 * * *", None)


async def test_an_alert_is_one_row_until_it_recovers(engine: AsyncEngine) -> None:
    alert = Alert("silence", Severity.WARNING, "No webhook for an hour")
    async with transaction(engine) as db:
        assert await alert_store.report(db, "webhooks.CheckHealth", alert, now=NOON) is True
        assert await alert_store.report(db, "webhooks.CheckHealth", alert, now=NOON) is False
        assert await alert_store.report(db, "another.Source", alert, now=NOON) is True
        assert await alert_store.recover(db, "webhooks.CheckHealth", still=["silence"], now=NOON) == []
        assert await alert_store.recover(db, "webhooks.CheckHealth", still=[], now=NOON) == [
            ("silence", "No webhook for an hour")
        ]
        assert await alert_store.report(db, "webhooks.CheckHealth", alert, now=NOON) is True


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE job_runs SET scheduled_for = now()",
        "UPDATE job_runs SET idempotency_key = 'x'",
        "DELETE FROM jobs",
        "UPDATE operator_requests SET answer = '{}'",
    ],
)
async def test_what_even_the_scheduler_may_not_change(engine: AsyncEngine, statement: str) -> None:
    with pytest.raises(DBAPIError, match="permission denied"):
        async with transaction(engine) as db:
            await db.execute(text(statement))
