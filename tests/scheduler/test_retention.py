"""What the scheduler forgets, how much at a time, and what it must not forget."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncEngine

from services.scheduler import actions
from services.scheduler.config import SchedulerSettings
from services.scheduler.rules import Policy

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
WEEK = Policy(runs_kept=timedelta(days=7), alerts_kept=timedelta(days=14), requests_kept=timedelta(days=7))
FILL = """
    INSERT INTO job_runs (id, job, scheduled_for, trigger, dry_run, owner, fence, lease_until, started_at,
                          finished_at, outcome)
    SELECT 'run_' || n, 'reconcile', at, 'schedule', false, 'a', 1, at, at, at, 'succeeded'
    FROM (SELECT n, %(now)s::timestamptz - n * interval '1 day' AS at FROM generate_series(1, 20) AS n) AS days;
    INSERT INTO alerts (id, source, key, severity, title, evidence, reports, created_at, last_reported_at, recovered_at)
    SELECT 'alr_' || n, 's', 'k' || n, 'warning', 't', '{}', 1, at, at, CASE WHEN n <> 20 THEN at END
    FROM (SELECT n, %(now)s::timestamptz - n * interval '1 day' AS at FROM generate_series(1, 20) AS n) AS days;
    INSERT INTO operator_requests (idempotency_key, request, answer, created_at)
    SELECT 'key' || n, '{}', '{}', %(now)s::timestamptz - n * interval '1 day' FROM generate_series(1, 20) AS n
"""


def left(admin: psycopg.Connection) -> list[int]:
    """Rows of runs, alerts and requests."""
    return [
        len(admin.execute(f"SELECT FROM {table}").fetchall())
        for table in ("job_runs", "alerts", "operator_requests")
    ]


@pytest.fixture
def filled(admin: psycopg.Connection, engine: AsyncEngine) -> psycopg.Connection:
    """Twenty days of everything."""
    psycopg.ClientCursor(admin).execute(FILL, {"now": NOW})
    return admin


async def test_what_is_kept_is_a_setting_and_again_finds_nothing(
    engine: AsyncEngine, filled: psycopg.Connection
) -> None:
    first = await actions.prune(engine, now=NOW, policy=WEEK)
    assert left(filled) == [7, 15, 7], "and the alert that still holds"
    assert (first["runs"], first["alerts"], first["requests"]) == (13, 5, 13)
    assert not any((await actions.prune(engine, now=NOW, policy=WEEK)).values())


async def test_a_pass_forgets_so_much_the_oldest_first_and_replicas_share_it(
    engine: AsyncEngine, filled: psycopg.Connection
) -> None:
    await actions.prune(engine, now=NOW, policy=WEEK, limit=4)
    assert left(filled) == [16, 16, 16]
    assert filled.execute("SELECT min(scheduled_for) FROM job_runs").fetchone() == (NOW - timedelta(days=16),)
    await asyncio.gather(*(actions.prune(engine, now=NOW, policy=WEEK, limit=6) for _ in range(3)))
    await actions.prune(engine, now=NOW, policy=WEEK)
    assert left(filled) == [7, 15, 7]


async def test_the_newest_tick_of_a_job_is_not_forgotten_for_it_would_run_once_more(
    engine: AsyncEngine, admin: psycopg.Connection
) -> None:
    admin.execute("UPDATE jobs SET paused = name <> 'cleanup', schedule = '0 0 1 1 *'")
    new_year = datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)
    [run] = await actions.claim_due(engine, owner="a", now=new_year)
    admin.execute("UPDATE job_runs SET finished_at = started_at, outcome = 'succeeded'")
    await actions.prune(engine, now=NOW, policy=WEEK)
    assert await actions.claim_due(engine, owner="a", now=NOW) == []
    assert admin.execute("SELECT id FROM job_runs").fetchall() == [(run.id,)]


def settings(**values: Any) -> SchedulerSettings:
    """Settings of a deployment that decides these itself."""
    return SchedulerSettings(
        gateway_secret="gateway-key-of-16",
        operator_secret="operator-key-of-16",
        room_secret="room-key-of-16-chars",
        scheduler_database_url="postgresql://somebody",
        **values,
    )


def test_retention_lease_and_rate_are_settings() -> None:
    assert settings().policy == Policy()
    assert settings(
        scheduler_run_retention_days=7,
        scheduler_alert_retention_days=14,
        scheduler_operator_request_retention_days=7,
        scheduler_lease_seconds=2.5,
        billing_alert_messages_per_minute=5,
    ).policy == Policy(**{**vars(WEEK), "lease": timedelta(seconds=2.5), "messages_per_minute": 5})
    assert settings(billing_alert_webhook_url="").billing_alert_webhook_url is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scheduler_run_retention_days", 0),
        ("scheduler_run_retention_days", 3651),
        ("scheduler_alert_retention_days", 0),
        ("scheduler_operator_request_retention_days", 0),
        ("scheduler_lease_seconds", 0.5),
        ("scheduler_lease_seconds", 301),
        ("billing_alert_messages_per_minute", 0),
        ("billing_alert_messages_per_minute", 601),
        ("billing_alert_webhook_url", "hooks.example.com/SECRET"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        settings(**{name: value})
    assert [problem["loc"] for problem in refused.value.errors()] == [(name,)]
    assert "SECRET" not in str(refused.value)
