"""The provider does not accept our keys for a while: nothing is taken for its judgement of what we asked."""

from __future__ import annotations

import pytest

from tests.ledger.conftest import Travel
from tests.subscriptions.conftest import Room
from tests.subscriptions.life import Life, refused


async def test_a_refund_waits_for_keys_that_are_valid(
    room: Room, tenant: str, travel: Travel, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(room, tenant, travel)
    await life.subscribe("pro")
    [payment] = life.payments()
    with monkeypatch.context() as rotated:
        rotated.setattr(room.razorpay._sdk, "auth", (room.razorpay.key_id, "yesterday's"))
        answer = await life.refund(payment["id"])
        assert answer.status == "pending"
        [owed] = life.open_tasks()
        assert owed["last_error"].startswith("PROVIDER_NOT_CONFIGURED")

    await life.pass_time(hours=5)

    assert life.open_tasks() == []
    assert life.findings() == []
    assert life.refunded(payment["id"]) == [payment["amount_paise"]]


async def test_a_purchase_can_be_repeated_once_the_keys_are_valid(
    room: Room, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.provision(tenant)
    with monkeypatch.context() as rotated:
        rotated.setattr(room.razorpay._sdk, "auth", (room.razorpay.key_id, "yesterday's"))
        async with refused("PROVIDER_NOT_CONFIGURED"):
            await room.checkout(tenant)

    assert (await room.checkout(tenant)).checkout.subscription_id.startswith("sub_")
