"""Paused: no charges, the limits of free, until who paused it resumes it."""

from __future__ import annotations

from typing import Any

import pytest
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from tests.ledger.conftest import Travel
from tests.subscriptions.conftest import Room
from tests.subscriptions.life import POSTS, Life, refused

LOST: list[dict[str, Any]] = [
    {"kind": "drop"},
    {"kind": "status", "status": 502, "work_done": True},
    {"kind": "status", "status": 502},
]


async def test_a_pause_stops_charges_and_entitlements_until_resumed(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    sub = await life.subscribe("pro")
    end = life.row()["current_period_end"]

    paused, again = await life.pause(), await life.pause()

    assert (paused.status, paused.replayed) == (pb.SUBSCRIPTION_STATUS_PAUSED, False)
    assert (again.status, again.replayed) == (pb.SUBSCRIPTION_STATUS_PAUSED, True)
    await life.assert_stands("pro", "paused")
    assert await life.posts() == POSTS["free"]
    assert life.at_provider() == {sub: "paused"}
    async with refused("WRONG_STATUS", status="paused"):
        await life.change("business")
    await life.pass_until(end, hours=30)
    assert life.captured() == 1
    await life.assert_stands("pro", "paused")

    resumed, once_more = await life.resume(), await life.resume()

    assert (resumed.status, once_more.replayed) == (pb.SUBSCRIPTION_STATUS_ACTIVE, True)
    assert life.at_provider() == {sub: "active"}
    assert await life.posts() == POSTS["pro"]
    await life.pass_time(days=33)
    await life.assert_stands("pro")
    assert life.captured() == 2
    for action in ("subscription.paused", "subscription.resumed"):
        [audit] = life.audits(action)
        assert (audit["actor_type"], audit["actor_id"]) == ("service", "product")


@pytest.mark.parametrize("fault", LOST)
async def test_a_lost_answer_is_asked_for_again(
    room: Room, tenant: str, travel: Travel, fault: dict[str, Any]
) -> None:
    life = Life(room, tenant, travel)
    sub = await life.subscribe("pro")
    for move, status, path in ((life.pause, "paused", "pause"), (life.resume, "active", "resume")):
        room.sandbox.set("faults", method="POST", path=f"/v1/subscriptions/*/{path}", **fault)
        async with refused("PROVIDER_UNAVAILABLE"):
            await move()
        answer = await move()
        assert (answer.status, answer.replayed) == (
            pb.SubscriptionStatus.Value(f"SUBSCRIPTION_STATUS_{status.upper()}"),
            False,
        )
        assert life.at_provider() == {sub: status}
        await life.assert_stands("pro", status)


async def test_after_a_lost_answer_the_webhook_may_come_first(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    await life.subscribe("pro")
    room.sandbox.set("faults", kind="drop", method="POST", path="/v1/subscriptions/*/pause")
    async with refused("PROVIDER_UNAVAILABLE"):
        await life.pause()
    await life.hear("subscription.paused")
    await life.assert_stands("pro", "paused")

    assert (await life.pause()).status == pb.SUBSCRIPTION_STATUS_PAUSED
    await life.assert_stands("pro", "paused")


async def test_what_the_customer_paused_only_the_customer_resumes(room: Room, tenant: str) -> None:
    life = Life(room, tenant)
    sub = await life.subscribe("pro", method="upi")
    await life.act(sub, "pause")
    await life.assert_stands("pro", "paused")

    async with refused("PROVIDER_REFUSED", provider_field="status"):
        await life.resume()
    await life.assert_stands("pro", "paused")

    await life.act(sub, "resume")
    await life.assert_stands("pro")
    assert await life.posts() == POSTS["pro"]


async def test_only_what_is_active_can_be_paused(room: Room, tenant: str, travel: Travel) -> None:
    life = Life(room, tenant, travel)
    await room.provision(tenant)
    async with refused("NO_SUBSCRIPTION"):
        await life.pause()
    sub = await life.buy("pro", key="trial", trial=True)
    async with refused("WRONG_STATUS", status="trialing", allowed="active"):
        await life.pause()
    async with refused("WRONG_STATUS", status="trialing", allowed="paused"):
        await life.resume()
    assert life.at_provider() == {sub: "authenticated"}  # there a paused trial is a cancelled one

    await life.pass_until(life.row()["trial_end"], hours=1, tick=False)
    await life.act(sub, "fail")
    async with refused("WRONG_STATUS", status="past_due"):
        await life.pause()


@pytest.mark.parametrize("mode", ["now", "at_period_end"])
async def test_what_is_paused_is_cancelled_at_once(
    room: Room, tenant: str, travel: Travel, mode: str
) -> None:
    life = Life(room, tenant, travel)
    sub = await life.subscribe("pro")
    await life.pause()
    ended = await life.cancel(mode)
    assert ended.status == pb.SUBSCRIPTION_STATUS_CANCELED
    await life.reconcile()
    await life.assert_stands("free", "canceled")
    assert life.at_provider() == {sub: "cancelled"}
    await life.pass_time(days=40)
    assert life.captured() == 1


async def test_a_scheduled_end_passes_over_a_pause(room: Room, tenant: str, travel: Travel) -> None:
    life = Life(room, tenant, travel)
    sub = await life.subscribe("pro")
    end = life.row()["current_period_end"]
    await life.cancel("at_period_end")
    await life.pause()
    await life.pass_until(end, hours=-24)
    await life.pass_until(end, hours=1)

    await life.assert_stands("free", "canceled")
    assert (life.at_provider(), life.captured()) == ({sub: "cancelled"}, 1)


async def test_resumed_after_the_provider_should_have_been_told_the_end_still_comes(
    room: Room, tenant: str, travel: Travel
) -> None:
    life = Life(room, tenant, travel)
    sub = await life.subscribe("pro")
    end = life.row()["current_period_end"]
    await life.cancel("at_period_end")
    await life.pause()
    await life.pass_until(end, hours=-10)
    await life.resume()
    await life.assert_stands("pro", cancel_at_period_end=True)
    await life.pass_until(end, hours=-5)
    await life.pass_until(end, hours=1)

    await life.assert_stands("free", "canceled")
    assert (life.at_provider(), life.captured()) == ({sub: "cancelled"}, 1)
