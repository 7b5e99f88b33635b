"""A tenant whose books nobody can read stops no other tenant's."""

from __future__ import annotations

from tests.subscriptions.conftest import Room
from tests.subscriptions.test_sync import sync


async def test_a_new_catalogue_reaches_the_others(room: Room, tenant: str) -> None:
    tenants = [f"{tenant}_{number}" for number in range(3)]
    for each in tenants:
        await room.provision(each)
    room.change(
        "INSERT INTO tenant_addons (id, tenant_id, addon_id, units, status, period, next_renewal)"
        " VALUES (%s, %s, 'never_sold', 1, 'active', 1, now() + interval '1 day')",
        f"tad_{tenant}",
        tenants[1],
    )
    room.change("UPDATE subscriptions SET catalog_version = '' WHERE tenant_id LIKE %s", f"{tenant}%")

    await room.reconcile()

    behind = room.rows(
        "SELECT tenant_id FROM subscriptions WHERE catalog_version = '' AND tenant_id LIKE %s", f"{tenant}%"
    )
    room.change("DELETE FROM tenant_addons WHERE id = %s", f"tad_{tenant}")
    assert behind == [{"tenant_id": tenants[1]}]
    await room.reconcile()
    assert not room.rows(
        "SELECT FROM subscriptions WHERE catalog_version = '' AND tenant_id LIKE %s", f"{tenant}%"
    )


async def test_what_webhooks_did_not_tell_is_found_for_the_others(room: Room, tenant: str) -> None:
    tenants = [f"{tenant}_{number}" for number in range(2)]
    for each in tenants:
        await room.provision(each)
        order = await room.buy_credits(each, pack="small")
        room.sandbox.act(f"orders/{order.order_id}/pay", method="upi", deliver=False)
    # Operators may write this column, and mistype.
    room.change("UPDATE subscriptions SET plan_id = 'porfessional' WHERE tenant_id = %s", tenants[0])

    synced = await sync(room, key=tenant)

    [alert] = [each for each in synced.alerts if each.tenant_id == tenants[0]]
    assert alert.evidence["error"] == "UnknownPlan"
    assert [await room.balance(each) for each in tenants] == [
        {"subscription": 0, "permanent": 0},
        {"subscription": 0, "permanent": 500},
    ]
    room.change("UPDATE subscriptions SET plan_id = 'free' WHERE tenant_id = %s", tenants[0])
    await sync(room, key=f"{tenant}:again")
    assert await room.balance(tenants[0]) == {"subscription": 0, "permanent": 500}
