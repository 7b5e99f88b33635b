"""Limits set for one tenant: with a reason, for a while, in the ledger at once, and gone when their time is over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from billing.subscriptions.v1 import catalog_pb2
from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from services.subscriptions.actions.overrides import lapse_overrides
from shared import clock
from shared.errors import FailedPrecondition, InvalidArgument, NotFound
from tests.ledger.conftest import Travel
from tests.subscriptions.addon_books import Books, books
from tests.subscriptions.conftest import Room


async def set_limit(
    of: Books, value: int | None, key: str = "set", *, expires_at: datetime | None = None, **more: Any
) -> pb.SetOverrideResponse:
    stamp = None
    if expires_at is not None:
        stamp = Timestamp()
        stamp.FromDatetime(expires_at)
    bound: dict[str, Any] = {"unlimited": True} if value is None else {"value": value}
    asked: dict[str, Any] = {
        "tenant_id": of.tenant,
        "idempotency_key": key,
        "actor": "asha",
        "reason": "ticket 7",
        "service_code": "platform",
        "limit": catalog_pb2.Limit(key="seats", **bound),
        "expires_at": stamp,
    }
    return await of.room.admin.SetOverride(pb.SetOverrideRequest(**(asked | more)))


async def remove(of: Books, override_id: str, key: str = "remove") -> pb.RemoveOverrideResponse:
    return await of.room.admin.RemoveOverride(
        pb.RemoveOverrideRequest(
            tenant_id=of.tenant,
            idempotency_key=key,
            actor="ravi",
            reason="ticket 8",
            override_id=override_id,
        )
    )


def audited(of: Books) -> list[tuple[str, str, Any, Any]]:
    found = of.room.rows(
        "SELECT action, actor_id, metadata FROM billing_audit_log"
        " WHERE tenant_id = %s AND resource_type = 'override' ORDER BY created_at, id",
        of.tenant,
    )
    return [
        (
            row["action"],
            row["actor_id"],
            (row["metadata"]["before"] or {}).get("value"),
            (row["metadata"]["after"] or {}).get("value"),
        )
        for row in found
    ]


async def test_an_override_replaces_the_plans_limit_until_it_is_removed(room: Room, tenant: str) -> None:
    of = await books(room, tenant)
    of_plan = await of.limit()

    done = await set_limit(of, 40)

    assert await of.limit() == 40
    assert done.entitlements_version == (await room.current(tenant)).entitlements_version
    assert (done.override.limit.value, done.override.reason, done.override.actor) == (40, "ticket 7", "asha")
    again = await set_limit(of, 40)
    assert (again.replayed, again.override) == (True, done.override)
    with pytest.raises(FailedPrecondition) as other:
        await set_limit(of, 41)
    assert other.value.metadata["field"] == "limit.value"

    removed = await remove(of, done.override.override_id)
    assert await of.limit() == of_plan
    assert removed.entitlements_version > done.entitlements_version
    assert (await remove(of, done.override.override_id)).replayed
    with pytest.raises(NotFound) as gone:
        await remove(of, done.override.override_id, "again")
    assert gone.value.reason == "UNKNOWN_OVERRIDE"
    assert audited(of) == [
        ("override.set", "asha", None, 40),
        ("override.removed", "ravi", 40, None),
    ]
    await of.assert_entitled()


async def test_a_second_override_takes_the_place_of_the_first(room: Room, tenant: str) -> None:
    of = await books(room, tenant, 1000)
    await of.buy()
    first = await set_limit(of, 40)
    second = await set_limit(of, 0, "less")

    assert await of.limit() == 0, "add-ons do not raise what was set by hand"
    with pytest.raises(NotFound):
        await remove(of, first.override.override_id)
    third = await set_limit(of, None, "no bound")
    services = room.rows("SELECT entitlements FROM subscriptions WHERE tenant_id = %s", tenant)[0]
    [seats] = [
        limit
        for service in services["entitlements"]
        if service["serviceCode"] == "platform"
        for limit in service["limits"]
        if limit["key"] == "seats"
    ]
    assert seats["value"] is None
    assert third.override.limit.unlimited
    live = room.rows("SELECT id FROM tenant_overrides WHERE tenant_id = %s AND removed_at IS NULL", tenant)
    assert [row["id"] for row in live] == [third.override.override_id]
    assert second.override.override_id != third.override.override_id
    await of.assert_entitled()


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"service_code": "castle"}, "service_code"),
        ({"limit": catalog_pb2.Limit(key="towers", value=1)}, "limit.key"),
        ({"limit": catalog_pb2.Limit(key="seats", value=-1)}, "limit.value"),
        ({"limit": catalog_pb2.Limit(key="seats")}, "limit"),
        ({"limit": catalog_pb2.Limit(key="seats", unlimited=False)}, "limit"),
        ({"limit": None}, "limit"),
        ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "expires_at"),
    ],
)
async def test_what_cannot_be_set_is_named(
    room: Room, tenant: str, wrong: dict[str, Any], field: str
) -> None:
    of = await books(room, tenant)

    with pytest.raises(InvalidArgument) as refused:
        await set_limit(of, 5, **wrong)

    assert [name for name, _ in refused.value.violations] == [field]
    assert room.rows("SELECT 1 FROM tenant_overrides WHERE tenant_id = %s", tenant) == []


async def test_an_override_lapses_when_its_time_is_over(room: Room, tenant: str, travel: Travel) -> None:
    of = await books(room, tenant)
    of_plan = await of.limit()
    await set_limit(of, 40, expires_at=clock.now() + timedelta(days=2))
    assert tenant not in await lapse_overrides(room.engine, now=clock.now(), limit=100)

    travel.forward(days=3)
    lapsed = await lapse_overrides(room.engine, now=clock.now(), limit=100)
    assert tenant in lapsed
    await room.reconcile()

    assert await of.limit() == of_plan
    assert audited(of)[-1] == ("override.lapsed", "reconcile", 40, None)
    assert tenant not in await lapse_overrides(room.engine, now=clock.now(), limit=100)
    await of.assert_entitled()
    # The way is free for another one.
    await set_limit(of, 7, "anew")
    assert await of.limit() == 7


async def test_one_tenant_that_cannot_be_rebuilt_keeps_nobody_waiting(
    room: Room, tenant: str, travel: Travel
) -> None:
    of, broken = await books(room, tenant), await books(room, f"{tenant}_broken")
    for each in (broken, of):
        await set_limit(each, 40, expires_at=clock.now() + timedelta(days=2))
    room.change("UPDATE subscriptions SET plan_id = 'platinum' WHERE tenant_id = %s", broken.tenant)

    travel.forward(days=3)
    lapsed = await lapse_overrides(room.engine, now=clock.now(), limit=100)

    assert tenant in lapsed
    assert broken.tenant not in lapsed
    room.change("UPDATE subscriptions SET plan_id = 'free' WHERE tenant_id = %s", broken.tenant)
    assert broken.tenant in await lapse_overrides(room.engine, now=clock.now(), limit=100)


async def test_overrides_are_for_operators_and_known_tenants(room: Room, tenant: str) -> None:
    stranger = Books(room, f"{tenant}_stranger")

    for call in (set_limit(stranger, 5), remove(stranger, "ovr_none")):
        with pytest.raises(NotFound) as refused:
            await call
        assert refused.value.reason == "UNKNOWN_TENANT"
