"""Free months and months of paid years: each once, on time or late, whenever the job comes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from billing.subscriptions.v1 import catalog_pb2, subscriptions_maintenance_pb2_grpc, subscriptions_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb
from pydantic import SecretStr

from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.rules.due import current_month
from services.subscriptions.rules.periods import RENEWAL_GRACE
from shared.rpc.client import open_channel
from tests.conftest import Database
from tests.ledger.conftest import SECRETS, Travel
from tests.sandbox.running import KEY_ID, KEY_SECRET, free_port
from tests.subscriptions.conftest import MovableClock, Room, serving
from tests.subscriptions.holding import held


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
    # The first month comes with its payment, the others by the job.
    assert [each["reference_id"] for each in grants(room, tenant)] == [f"razorpay:{payment['id']}:m1"]
    assert (await room.balance(tenant))["subscription"] == 15_000

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
    assert (dry.drip_months, len(grants(room, tenant))) == (3, 1)

    answer = await run(room)

    found = grants(room, tenant)[1:]
    now = room.clock()
    assert (answer.drip_months, len(found)) == (3, 3)
    assert all(each["expires_at"] > now for each in found)
    assert (await room.balance(tenant))["subscription"] == 3 * 15_000
    late = [each["expires_at"] - (each["period_end"] - each["period_start"]) for each in found[:2]]
    assert all(now - timedelta(minutes=1) < each <= now for each in late)


@pytest.mark.usefixtures("dripping")
async def test_runs_at_the_same_time_grant_a_month_once(room: Room, tenant: str, travel: Travel) -> None:
    await buy(room, tenant, cycle="yearly")
    travel.forward(days=34)  # the first month's credits are over

    answers = await asyncio.gather(*(run(room, str(number)) for number in range(4)))

    assert sum(answer.drip_months for answer in answers) == 1
    assert len(grants(room, tenant)) == 2
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
    travel.forward(days=34)
    assert (await run_without_a_ledger(room, database)).drip_months == 1
    travel.forward(days=40)

    await room.reconcile()
    [_, task] = grant_tasks(room, tenant)
    # The answer of that attempt was lost: another one finds what it did.
    room.change(
        "UPDATE billing_reconciliation_queue SET completed_at = NULL, next_attempt_at = now() WHERE id = %s",
        task["id"],
    )
    await room.reconcile()

    [_, task] = grant_tasks(room, tenant)
    assert task["completed_at"] is not None
    assert (await room.balance(tenant))["subscription"] == 15_000
    travel.forward(days=27)
    assert (await room.balance(tenant))["subscription"] == 15_000
    travel.forward(days=5)
    assert (await room.balance(tenant))["subscription"] == 0
