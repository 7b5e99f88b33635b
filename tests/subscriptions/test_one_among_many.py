"""A tenant whose books nobody can read stops no other tenant's."""

from __future__ import annotations

from tests.subscriptions.conftest import Room


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
