"""Free months and months of paid years: each once, on time or late, whenever the job comes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from billing.subscriptions.v1 import catalog_pb2, subscriptions_maintenance_pb2_grpc, subscriptions_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.rules import due
from services.subscriptions.rules.due import IST, DrippingYear, add_months, current_month, months_of
from services.subscriptions.rules.funding import Grant
from services.subscriptions.rules.periods import RENEWAL_GRACE
from shared.rpc.client import open_channel
from tests.conftest import Database
from tests.ledger.conftest import SECRETS, Travel
from tests.sandbox.running import KEY_ID, KEY_SECRET, free_port
from tests.subscriptions.builders import a_known
from tests.subscriptions.conftest import MovableClock, Room, serving
from tests.subscriptions.holding import held

HOUR = timedelta(hours=1)
FIRST = datetime(2023, 1, 1, tzinfo=UTC)
MOMENTS = st.timedeltas(timedelta(), timedelta(days=11 * 365)).map(lambda since: FIRST + since)


def a_year(start: datetime, **of: Any) -> DrippingYear:
    """A year as the provider bills it: it ends at midnight in India."""
    end = add_months(start, 12).replace(hour=0, minute=0, second=0, microsecond=0)
    year = DrippingYear(
        payment_id="pay_1",
        tenant_id="tn_1",
        razorpay_subscription_id="sub_1",
        plan_name="Pro",
        credits=15_000,
        amount_paise=2_358_820,
        given_back_paise=0,
        period_start=start,
        period_end=end,
        received_at=start,
    )
    return replace(year, **of)


def owed(
    year: DrippingYear, now: datetime, *, granted: frozenset[str] = frozenset(), **of: Any
) -> list[Grant]:
    """What is due of a year whose subscription is `a_known(**of)`."""
    known = [a_known(id="sub_1", paid_count=1, billing_cycle="yearly", **of)]
    return due.due_months(year, known, granted, now, prorated=True)


@given(MOMENTS)
@example(datetime(2024, 1, 31, 12, tzinfo=UTC))
@example(datetime(2024, 2, 29, 12, tzinfo=UTC))
@example(datetime(2025, 12, 31, 18, 30, tzinfo=UTC))
def test_twelve_months_are_the_year_without_gap_or_overlap(start: datetime) -> None:
    year = a_year(start)

    months = list(months_of(year))

    assert [month.name for month in months] == [str(k) for k in range(1, 13)]
    assert (months[0].start, months[-1].end) == (start, year.period_end)
    assert all(one.end == following.start for one, following in pairwise(months))
    assert all(timedelta(days=26) < month.end - month.start <= timedelta(days=31) for month in months)
    first = start.astimezone(IST)
    for number, month in enumerate(months):
        local = month.start.astimezone(IST)
        assert (local.year * 12 + local.month) - (first.year * 12 + first.month) == number
        # The same day, or the last one of a month that is too short.
        assert local.day == first.day or (local + timedelta(days=1)).day == 1


@pytest.mark.parametrize(
    ("start", "days"),
    [
        (
            datetime(2027, 8, 31, tzinfo=IST),
            [(8, 31), (9, 30), (10, 31), (11, 30), (12, 31), (1, 31), (2, 29)],
        ),
        (
            datetime(2026, 8, 31, tzinfo=IST),
            [(8, 31), (9, 30), (10, 31), (11, 30), (12, 31), (1, 31), (2, 28)],
        ),
        (datetime(2028, 2, 29, tzinfo=IST), [(2, 29), (3, 29), (4, 29)]),
        # 20:00 UTC on the 30th is the 31st in India.
        (datetime(2026, 1, 30, 20, tzinfo=UTC), [(1, 31), (2, 28), (3, 31)]),
    ],
)
def test_a_year_keeps_its_day(start: datetime, days: list[tuple[int, int]]) -> None:
    starts = [month.start.astimezone(IST) for month in months_of(a_year(start))]

    assert [(each.month, each.day) for each in starts][: len(days)] == days


@given(MOMENTS, st.lists(st.integers(0, 500 * 24), max_size=40), st.integers(1, 60 * 24))
def test_any_sequence_of_job_times_grants_each_month_once(
    start: datetime, hours: list[int], after_the_end: int
) -> None:
    year = a_year(start)
    times = sorted([*(start + hour * HOUR for hour in hours), year.period_end + after_the_end * HOUR])
    granted: dict[str, Grant] = {}

    for now in times:
        for grant in owed(year, now, granted=frozenset(granted)):
            assert grant.reference_id not in granted
            assert grant.period_start is not None
            assert grant.period_end is not None
            assert grant.expires_at is not None
            assert grant.expires_at > now >= grant.period_start
            on_time = now < grant.period_end
            length = grant.period_end - grant.period_start
            assert grant.expires_at == (grant.period_end + RENEWAL_GRACE if on_time else now + length)
            granted[grant.reference_id] = grant

    assert set(granted) == {f"razorpay:pay_1:m{k}" for k in range(1, 13)}
    assert sum(grant.credits for grant in granted.values()) == 12 * 15_000


@given(MOMENTS)
def test_a_moment_lies_in_one_month_of_india(now: datetime) -> None:
    month = current_month(now)

    assert month.start <= now < month.end
    assert month.name == f"{now.astimezone(IST):%Y-%m}"
    assert current_month(month.end).start == month.end
    assert current_month(month.end - timedelta(microseconds=1)) == month


def test_the_month_turns_at_midnight_in_india() -> None:
    before = datetime(2026, 11, 30, 18, 29, 59, tzinfo=UTC)

    assert current_month(before).name == "2026-11"
    assert current_month(before + timedelta(seconds=1)).name == "2026-12"


START = datetime(2026, 3, 10, 9, tzinfo=UTC)


def numbers(grants: list[Grant]) -> list[int]:
    return [int(grant.reference_id.rpartition(":m")[2]) for grant in grants]


@pytest.mark.parametrize(
    ("given_back", "months"), [(0, [1, 2, 3]), (2_358_819, [1, 2, 3]), (2_358_820, []), (3_000_000, [])]
)
def test_money_that_went_back_in_full_stops_the_year(given_back: int, months: list[int]) -> None:
    year = a_year(START, given_back_paise=given_back)

    assert numbers(owed(year, START + timedelta(days=70))) == months


def test_what_was_released_is_owed_the_months_that_had_begun() -> None:
    year, released = a_year(START), add_months(START, 2)

    late = START + timedelta(days=300)

    assert numbers(owed(year, late, released_at=released, released_paid_count=1)) == [1, 2]
    assert numbers(owed(year, late, released_at=released + HOUR, released_paid_count=1)) == [1, 2, 3]


def test_what_was_paid_after_the_release_is_owed_in_full() -> None:
    year = a_year(START, received_at=START + timedelta(days=16))

    revived = owed(
        year, START + timedelta(days=300), released_at=START + timedelta(days=14), released_paid_count=0
    )

    assert numbers(revived) == list(range(1, 11))


def replaced(now: datetime, *, paid_count: int, prorated: bool, started_at: datetime) -> list[Grant]:
    older = a_known(id="sub_1", paid_count=1, purchased_at=START)
    newer = a_known(
        id="sub_2",
        intent_id="int_2",
        paid_count=paid_count,
        purchased_at=START + timedelta(days=1),
        started_at=started_at,
    )
    return due.due_months(a_year(START), [newer, older], frozenset(), now, prorated=prorated)


def test_a_newer_purchase_takes_over_once_it_is_paid_and_has_begun() -> None:
    taken_over, now = add_months(START, 2), START + timedelta(days=100)

    assert numbers(replaced(now, paid_count=0, prorated=True, started_at=taken_over)) == [1, 2, 3, 4]
    assert numbers(replaced(now, paid_count=1, prorated=True, started_at=taken_over)) == [1, 2]


@pytest.mark.parametrize(("prorated", "credits"), [(True, 15_000 * 10 // 31), (False, 15_000)])
def test_of_the_month_in_which_it_was_taken_over_the_used_part_is_owed(prorated: bool, credits: int) -> None:
    """Where the money of the rest went back."""
    taken_over = START + timedelta(days=10)

    [grant] = replaced(START + timedelta(days=50), paid_count=1, prorated=prorated, started_at=taken_over)

    assert (numbers([grant]), grant.credits) == ([1], credits)


async def run(room: Room, key: str = "now", *, dry_run: bool = False) -> pb.GrantDueCreditsResponse:
    return await room.maintenance.GrantDueCredits(
        pb.GrantDueCreditsRequest(idempotency_key=f"job:grant_due_credits:{key}", dry_run=dry_run)
    )


def grants(room: Room, tenant: str) -> list[dict[str, Any]]:
    return room.rows(
        "SELECT * FROM credit_grants WHERE tenant_id = %s ORDER BY created_at, period_start", tenant
    )


async def buy(room: Room, tenant: str, *, plan: str = "pro", cycle: str = "monthly") -> str:
    await room.provision(tenant)
    begun = await room.checkout(tenant, plan=plan, cycle=cycle)
    subscription_id = begun.checkout.subscription_id
    for delivery in room.sandbox.act(f"subscriptions/{subscription_id}/pay", method="card"):
        await room.deliver(delivery)
    return subscription_id


async def test_a_free_month_comes_once_and_ends_with_the_month(
    room: Room, tenant: str, travel: Travel
) -> None:
    await room.provision(tenant)

    answers = [await run(room, "1"), await run(room, "1"), await run(room, "2")]

    [grant] = grants(room, tenant)
    month = current_month(room.clock())
    assert (grant["reference_id"], grant["kind"]) == (f"free:{tenant}:{month.name}", "free_month")
    assert (grant["credits"], grant["bucket"], grant["expires_at"]) == (100, "subscription", month.end)
    assert (grant["period_start"], grant["period_end"]) == (month.start, month.end)
    assert await room.balance(tenant) == {"subscription": 100, "permanent": 0}
    assert answers[0].free_months >= 1
    assert answers[0].credits >= 100
    assert [answer.free_months for answer in answers[1:]] == [0, 0]
    assert all(answer.still_due == 0 and not answer.alerts for answer in answers)

    travel.forward(days=32)
    await run(room, "3")
    assert [each["credits"] for each in grants(room, tenant)] == [100, 100]
    assert await room.balance(tenant) == {"subscription": 100, "permanent": 0}


async def test_a_dry_run_counts_and_writes_nothing(room: Room, tenant: str) -> None:
    await room.provision(tenant)
    await run(room, "others")
    room.change("DELETE FROM credit_grants WHERE tenant_id = %s", tenant)

    answer = await run(room, dry_run=True)

    assert (answer.free_months, answer.credits, answer.drip_months) == (1, 100, 0)
    assert grants(room, tenant) == []


async def test_runs_at_the_same_time_grant_once(room: Room, tenant: str) -> None:
    tenants = [f"{tenant}-{number}" for number in range(20)]
    for each in tenants:
        await room.provision(each)

    answers = await asyncio.gather(*(run(room, str(number)) for number in range(4)))

    found = room.rows("SELECT tenant_id FROM credit_grants WHERE tenant_id = ANY(%s)", tenants)
    assert sorted(row["tenant_id"] for row in found) == sorted(tenants)
    tasks = room.rows(
        "SELECT 1 FROM billing_reconciliation_queue WHERE tenant_id = ANY(%s) AND task_type = 'grant_credits'",
        tenants,
    )
    assert len(tasks) == 20
    assert sum(answer.free_months for answer in answers) >= 20
    assert not any(answer.alerts for answer in answers)


async def test_who_pays_gets_no_free_month_and_who_left_does(room: Room, tenant: str, travel: Travel) -> None:
    subscription_id = await buy(room, tenant)
    await run(room, "paid")
    assert [grant["kind"] for grant in grants(room, tenant)] == ["plan.cycle"]

    for delivery in room.sandbox.act(f"subscriptions/{subscription_id}/cancel", at_cycle_end=False):
        await room.deliver(delivery)
    travel.forward(days=40)
    await room.reconcile()
    await run(room, "left")

    [row] = room.rows("SELECT plan_id, status FROM subscriptions WHERE tenant_id = %s", tenant)
    assert row == {"plan_id": "free", "status": "canceled"}
    assert [grant["kind"] for grant in grants(room, tenant)] == ["plan.cycle", "free_month"]


async def test_a_tenant_that_fails_stops_no_other_and_is_named(room: Room, tenant: str) -> None:
    await run(room, "others")
    stuck, fine = f"{tenant}-a", f"{tenant}-b"
    await room.provision(stuck)
    await room.provision(fine)

    with held(room, stuck):
        answer = await run(room, "1")

    assert [grant["credits"] for grant in grants(room, fine)] == [100]
    assert grants(room, stuck) == []
    assert (answer.free_months, answer.still_due) == (1, 1)
    [alert] = answer.alerts
    assert (alert.key, alert.tenant_id) == ("subscriptions.due_credits_failed", stuck)
    assert (await run(room, "2")).free_months == 1
    assert [grant["credits"] for grant in grants(room, stuck)] == [100]


@pytest.fixture
def dripping(room: Room) -> Iterator[None]:
    """A year of pro arrives month by month."""
    room.change("UPDATE plans SET credit_cadence = 'monthly' WHERE id = 'pro'")
    yield
    room.change("UPDATE plans SET credit_cadence = 'per_cycle' WHERE id = 'pro'")
    # A year that goes on would be counted by the tests that follow.
    room.change("UPDATE payments SET drip_credits = NULL")


@pytest.mark.usefixtures("dripping")
async def test_a_paid_year_arrives_month_by_month(room: Room, tenant: str, travel: Travel) -> None:
    subscription_id = await buy(room, tenant, cycle="yearly")
    [payment] = room.rows("SELECT * FROM payments WHERE tenant_id = %s", tenant)
    assert (payment["drip_credits"], payment["razorpay_subscription_id"]) == (15_000, subscription_id)
    assert (await room.balance(tenant))["subscription"] == 0

    for number in range(1, 13):
        for attempt in range(2):
            await run(room, f"{number}:{attempt}")
        found = grants(room, tenant)
        assert [each["reference_id"] for each in found] == [
            f"razorpay:{payment['id']}:m{k}" for k in range(1, number + 1)
        ]
        newest = found[-1]
        assert newest["period_start"] <= room.clock() < newest["period_end"]
        assert newest["expires_at"] == newest["period_end"] + RENEWAL_GRACE
        assert (await room.balance(tenant))["subscription"] == 15_000
        travel.forward(days=(newest["period_end"] - room.clock()) / timedelta(days=1) + 2.5)

    assert {each["credits"] for each in found} == {15_000}
    assert (found[0]["period_start"], found[-1]["period_end"]) == (
        payment["period_start"],
        payment["period_end"],
    )


@pytest.mark.usefixtures("dripping")
async def test_months_that_nobody_granted_are_made_up_for(room: Room, tenant: str, travel: Travel) -> None:
    await buy(room, tenant, cycle="yearly")
    travel.forward(days=100)
    dry = await run(room, dry_run=True)
    assert (dry.drip_months, len(grants(room, tenant))) == (4, 0)

    answer = await run(room)

    found = grants(room, tenant)
    now = room.clock()
    assert (answer.drip_months, len(found)) == (4, 4)
    assert all(each["expires_at"] > now for each in found)
    assert (await room.balance(tenant))["subscription"] == 4 * 15_000
    late = [each["expires_at"] - (each["period_end"] - each["period_start"]) for each in found[:3]]
    assert all(now - timedelta(minutes=1) < each <= now for each in late)


@pytest.mark.usefixtures("dripping")
async def test_runs_at_the_same_time_grant_a_month_once(room: Room, tenant: str) -> None:
    await buy(room, tenant, cycle="yearly")

    answers = await asyncio.gather(*(run(room, str(number)) for number in range(4)))

    assert sum(answer.drip_months for answer in answers) == 1
    assert len(grants(room, tenant)) == 1
    assert (await room.balance(tenant))["subscription"] == 15_000


@pytest.mark.usefixtures("dripping")
@pytest.mark.parametrize(("share", "months", "credits"), [(1, 1, 0), (2, 3, 7_500)])
async def test_a_refund_takes_its_share_of_every_month(
    room: Room, tenant: str, travel: Travel, share: int, months: int, credits: int
) -> None:
    await buy(room, tenant, cycle="yearly")
    await run(room, "1")
    [payment] = room.rows("SELECT id, amount_paise FROM payments WHERE tenant_id = %s", tenant)
    amount = payment["amount_paise"] // share
    for delivery in room.sandbox.act(f"payments/{payment['id']}/refund", amount=amount):
        await room.deliver(delivery)
    refunds = room.rows("SELECT provider_refund_id, status FROM billing_refunds WHERE tenant_id = %s", tenant)
    if [refund["status"] for refund in refunds] == ["pending"]:
        for delivery in room.sandbox.act(f"refunds/{refunds[0]['provider_refund_id']}/process"):
            await room.deliver(delivery)
    assert (await room.balance(tenant))["subscription"] == credits

    for _ in range(2):
        travel.forward(days=34)
        await run(room, "later")

    assert len(grants(room, tenant)) == months
    assert (await room.balance(tenant))["subscription"] == credits


@pytest.mark.usefixtures("dripping")
async def test_an_upgrade_ends_the_months_of_the_year_before(room: Room, tenant: str, travel: Travel) -> None:
    await buy(room, tenant, cycle="yearly")
    await run(room, "1")
    travel.forward(days=10)
    changed = await room.product.ChangePlan(
        subscriptions_pb2.ChangePlanRequest(
            tenant_id=tenant,
            idempotency_key="up",
            plan_code="business",
            cycle=catalog_pb2.BILLING_CYCLE_MONTHLY,
        )
    )
    for delivery in room.sandbox.act(f"subscriptions/{changed.checkout.subscription_id}/pay", method="card"):
        await room.deliver(delivery)
    await room.reconcile()
    taken = room.rows(
        "SELECT sum(credits) AS credits FROM grant_revocations WHERE tenant_id = %s AND cause = 'proration'",
        tenant,
    )[0]["credits"]
    assert 15_000 * 20 // 31 <= taken <= 15_000 * 21 // 28
    assert (await room.balance(tenant))["subscription"] == 50_000 + 15_000 - taken

    for number in range(3):
        travel.forward(days=31)
        assert (await run(room, f"later:{number}")).drip_months == 0

    kinds = [grant["kind"] for grant in grants(room, tenant)]
    assert sorted(kinds) == ["plan.cycle", "plan.month"]


async def run_without_a_ledger(room: Room, database: Database) -> pb.GrantDueCreditsResponse:
    """The job of a room that cannot reach its ledger."""
    razorpay = Razorpay(api_url=room.sandbox.url, key_id=KEY_ID, key_secret=KEY_SECRET)
    async with (
        serving(database, f"127.0.0.1:{free_port()}", razorpay, MovableClock()) as (address, _, _),
        open_channel(address, SecretStr(SECRETS["room_secret"])) as channel,
    ):
        stub = subscriptions_maintenance_pb2_grpc.SubscriptionsMaintenanceServiceStub(channel)
        return await stub.GrantDueCredits(
            pb.GrantDueCreditsRequest(idempotency_key="job:grant_due_credits:1")
        )


def grant_tasks(room: Room, tenant: str) -> list[dict[str, Any]]:
    return room.rows(
        "SELECT * FROM billing_reconciliation_queue WHERE tenant_id = %s AND task_type = 'grant_credits'"
        " ORDER BY position",
        tenant,
    )


async def test_a_free_month_that_the_ledger_hears_of_too_late_is_over(
    room: Room, database: Database, tenant: str, travel: Travel
) -> None:
    await run(room, "others")
    await room.provision(tenant)
    assert (await run_without_a_ledger(room, database)).free_months == 1
    travel.forward(days=32)

    await room.reconcile()

    [task] = grant_tasks(room, tenant)
    assert task["completed_at"] is not None
    assert task["last_error"].startswith("its time was over")
    assert (await room.balance(tenant))["subscription"] == 0
    await run(room, "next")
    assert (await room.balance(tenant))["subscription"] == 100


@pytest.mark.usefixtures("dripping")
async def test_a_paid_month_that_the_ledger_hears_of_too_late_lasts_as_long_as_any(
    room: Room, database: Database, tenant: str, travel: Travel
) -> None:
    await buy(room, tenant, cycle="yearly")
    assert (await run_without_a_ledger(room, database)).drip_months == 1
    travel.forward(days=40)

    await room.reconcile()
    [task] = grant_tasks(room, tenant)
    # The answer of that attempt was lost: another one finds what it did.
    room.change(
        "UPDATE billing_reconciliation_queue SET completed_at = NULL, next_attempt_at = now() WHERE id = %s",
        task["id"],
    )
    await room.reconcile()

    [task] = grant_tasks(room, tenant)
    assert task["completed_at"] is not None
    assert (await room.balance(tenant))["subscription"] == 15_000
    travel.forward(days=27)
    assert (await room.balance(tenant))["subscription"] == 15_000
    travel.forward(days=5)
    assert (await room.balance(tenant))["subscription"] == 0
