"""When a job is due, what a run amounts to and when it alerts."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from services.scheduler import rules
from services.scheduler.clients import method_of
from services.scheduler.jobs import JOBS
from services.scheduler.rules import JobState, Outcome, Report, Run, Target, Trigger


def at(text: str) -> datetime:
    """A moment in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def state(
    schedule: str,
    last: str | None = None,
    *,
    paused: bool = False,
    since: str = "2026-01-01",
    set_at: str | None = None,
) -> JobState:
    """A job as the database describes it."""
    return JobState(
        name="job",
        schedule=schedule,
        deadline=timedelta(seconds=5),
        paused=paused,
        created_at=at(since),
        last_tick=None if last is None else at(last),
        ticks_from=None if set_at is None else at(set_at),
    )


@pytest.mark.parametrize(
    ("schedule", "now", "latest", "following"),
    [
        ("* * * * *", "2026-11-20T12:00:00", "2026-11-20T12:00", "2026-11-20T12:01"),
        ("* * * * *", "2026-11-20T12:00:00.000001", "2026-11-20T12:00", "2026-11-20T12:01"),
        ("* * * * *", "2026-11-20T12:00:59.999999", "2026-11-20T12:00", "2026-11-20T12:01"),
        ("*/5 * * * *", "2026-11-20T12:04:59", "2026-11-20T12:00", "2026-11-20T12:05"),
        ("0 * * * *", "2026-12-31T23:59:59", "2026-12-31T23:00", "2027-01-01T00:00"),
        ("0 3 * * *", "2026-11-20T02:59:59", "2026-11-19T03:00", "2026-11-20T03:00"),
        ("0 3 * * *", "2028-02-29T03:00:00", "2028-02-29T03:00", "2028-03-01T03:00"),
        ("0 0 31 * *", "2026-11-20T12:00:00", "2026-10-31T00:00", "2026-12-31T00:00"),
        # The nights in which Europe and America change their clocks: UTC has 24 hours on each.
        ("30 1 * * *", "2026-10-25T01:30:00", "2026-10-25T01:30", "2026-10-26T01:30"),
        ("30 2 * * *", "2026-03-08T02:30:00", "2026-03-08T02:30", "2026-03-09T02:30"),
    ],
)
def test_ticks(schedule: str, now: str, latest: str, following: str) -> None:
    assert rules.latest_tick(schedule, at(now)) == at(latest)
    assert rules.next_tick(schedule, at(now)) == at(following)


def test_an_hourly_job_has_one_tick_per_hour_of_a_night_of_25_hours() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    moment, ticks = datetime(2026, 10, 24, 22, 0, tzinfo=UTC), []
    while moment <= datetime(2026, 10, 25, 22, 0, tzinfo=UTC):
        ticks.append(rules.latest_tick("0 * * * *", moment.astimezone(berlin)))
        moment += timedelta(hours=1)
    assert ticks == [datetime(2026, 10, 24, 22, tzinfo=UTC) + timedelta(hours=n) for n in range(25)]


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        ("0 0 12 * * *", "five fields"),
        ("* * * *", "five fields"),
        ("", "five fields"),
        ("61 * * * *", "not a schedule"),
        ("0 0 31 2 *", "not a schedule"),
        ("R * * * *", "not a schedule"),
    ],
)
def test_schedules_that_are_refused(schedule: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        rules.check_schedule(schedule)


@pytest.mark.parametrize(
    ("job", "now", "due"),
    [
        (state("*/5 * * * *"), "2026-11-20T12:07", "2026-11-20T12:05"),
        (state("*/5 * * * *", "2026-11-20T12:00"), "2026-11-20T12:04:59", None),
        (state("*/5 * * * *", "2026-11-20T12:00"), "2026-11-20T12:05", "2026-11-20T12:05"),
        # Down from Friday noon to Monday: of hundreds of ticks only the newest.
        (state("*/5 * * * *", "2026-11-20T12:00"), "2026-11-23T09:03", "2026-11-23T09:00"),
        (state("0 3 * * *", "2026-11-17T03:00"), "2026-11-20T12:00", "2026-11-20T03:00"),
        # A job is not owed what came before it.
        (state("0 3 * * *", since="2026-11-20T11:00"), "2026-11-20T12:00", None),
        (state("0 3 * * *", since="2026-11-20T11:00"), "2026-11-21T03:00", "2026-11-21T03:00"),
        (state("* * * * *", paused=True), "2026-11-20T12:00", None),
        # Another schedule owes nothing from before it was set.
        (state("*/5 * * * *", "2026-11-20T03:00", set_at="2026-11-20T12:01"), "2026-11-20T12:02", None),
        (
            state("*/5 * * * *", "2026-11-20T03:00", set_at="2026-11-20T12:01"),
            "2026-11-20T12:05",
            "2026-11-20T12:05",
        ),
        # Unless the clock was turned back since.
        (
            state("*/5 * * * *", "2026-11-20T03:00", set_at="2027-11-20T12:01"),
            "2026-11-20T12:05",
            "2026-11-20T12:05",
        ),
        # Another replica's clock is a little ahead: its tick counts.
        (state("* * * * *", "2026-11-20T12:01"), "2026-11-20T12:00:59", None),
        # The clock was turned back from next year: time goes on from here.
        (state("* * * * *", "2027-11-20T12:00"), "2026-11-20T12:00:30", "2026-11-20T12:00"),
    ],
)
def test_what_is_due(job: JobState, now: str, due: str | None) -> None:
    assert rules.due_tick(job, at(now)) == (None if due is None else at(due))


def test_the_key_of_a_tick_is_the_same_whoever_runs_it() -> None:
    run = Run(
        id="run_1",
        job="reconcile",
        scheduled_for=at("2026-11-20T12:05").astimezone(ZoneInfo("Asia/Kolkata")),
        trigger=Trigger.SCHEDULE,
        idempotency_key=None,
        dry_run=False,
        owner="a",
        fence=2,
        started_at=at("2026-11-20T12:05:01"),
        finished_at=None,
        outcome=None,
        summary={},
    )
    assert run.key == "job:reconcile:2026-11-20T12:05:00Z"


@pytest.mark.parametrize(
    ("calls", "run"),
    [
        ([Outcome.SUCCEEDED], Outcome.SUCCEEDED),
        ([Outcome.SUCCEEDED, Outcome.UNIMPLEMENTED], Outcome.SUCCEEDED),
        ([Outcome.UNIMPLEMENTED, Outcome.UNIMPLEMENTED], Outcome.UNIMPLEMENTED),
        ([Outcome.SUCCEEDED, Outcome.FAILED, Outcome.UNIMPLEMENTED], Outcome.FAILED),
    ],
)
def test_what_a_run_amounts_to(calls: list[Outcome], run: Outcome) -> None:
    reports = [Report(Target("ledger", "a.B", f"C{n}"), outcome, {"n": n}) for n, outcome in enumerate(calls)]
    assert rules.outcome_of(reports) is run
    assert rules.summary_of(reports)["ledger.C0"] == {"outcome": calls[0].value, "n": 0, "alerts": 0}


@pytest.mark.parametrize(
    ("newest", "alerts"),
    [
        ([Outcome.FAILED] * 2, 0),
        ([Outcome.FAILED] * 3, 1),
        ([Outcome.SUCCEEDED] + [Outcome.FAILED] * 3, 0),
        ([Outcome.FAILED, Outcome.UNIMPLEMENTED, Outcome.FAILED, Outcome.FAILED], 0),
    ],
)
def test_three_failures_in_a_row_alert(newest: list[Outcome], alerts: int) -> None:
    assert len(rules.alerts_of_job("reconcile", newest)) == alerts


def test_every_job_calls_a_maintenance_rpc_that_takes_its_key_and_has_a_schedule() -> None:
    for job in JOBS:
        rules.check_schedule(job.schedule)
        for target in job.targets:
            method = method_of(target)
            assert "idempotency_key" in method.input_type.fields_by_name
            assert "alerts" in method.output_type.fields_by_name
    called = {job.name: [target.name for target in job.targets] for job in JOBS}
    assert called["cleanup"] == ["ledger.Cleanup", "subscriptions.Cleanup", "webhooks.Cleanup"]
    assert called["audit_integrity"] == ["ledger.AuditIntegrity", "subscriptions.AuditSubscriptions"]
    assert called["billing_health"] == ["subscriptions.CheckHealth"]
    assert len(called) == 11


@pytest.mark.parametrize(
    ("untold", "posted", "per_minute", "told"),
    [
        (0, 0, 20, 0),
        (1, 19, 20, 1),
        (5, 0, 20, 1),
        (60, 18, 20, 1),
        (41, 19, 20, 41),
        (41, 20, 20, 0),
        (41, 25, 20, 0),
        (7, 0, 1, 7),
        (1_000_000, 19, 20, rules.DIGEST_MAX),
    ],
)
def test_how_many_alerts_a_message_tells_of(untold: int, posted: int, per_minute: int, told: int) -> None:
    assert rules.alerts_in_next_message(untold, posted=posted, per_minute=per_minute) == told
