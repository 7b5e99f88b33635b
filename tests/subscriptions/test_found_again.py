"""A subscription whose answer was lost, and that was paid before anybody asked again."""

from __future__ import annotations

import json
import random

import pytest
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from shared import sensitive
from shared.errors import Unavailable
from tests.subscriptions.conftest import Room
from tests.subscriptions.test_border import at_provider


@pytest.mark.parametrize("delivered", [False, True])
async def test_a_repeated_checkout_funds_what_was_paid_meanwhile(
    room: Room, tenant: str, delivered: bool
) -> None:
    await room.provision(tenant)
    room.sandbox.set("faults", kind="drop", method="POST", path="/v1/subscriptions", times=1)
    with pytest.raises(Unavailable):
        await room.checkout(tenant)
    [made] = at_provider(room, tenant)
    deliveries = room.sandbox.act(f"subscriptions/{made['id']}/pay", method="card")

    await room.checkout(tenant)
    for delivery in deliveries if delivered else []:
        await room.deliver(delivery)

    assert (await room.balance(tenant))["subscription"] == 15_000
    current = await room.current(tenant)
    assert (current.plan_code, current.status) == ("pro", pb.SUBSCRIPTION_STATUS_ACTIVE)
    assert not current.HasField("pending_change")
    assert len(room.rows("SELECT 1 FROM credit_grants WHERE tenant_id = %s", tenant)) == 1


@pytest.mark.parametrize("delivered", [False, True])
async def test_a_tenant_whose_id_looks_like_a_card_number_is_found_again(room: Room, delivered: bool) -> None:
    """What the provider tells is freed of card numbers; what products call their tenants is none."""
    digits = f"4{random.randrange(10**14):014}"
    [tenant] = [f"{digits}{check}" for check in range(10) if sensitive.holds_card(f"{digits}{check}")]
    await room.provision(tenant)
    room.sandbox.set("faults", kind="drop", method="POST", path="/v1/subscriptions", times=1)
    with pytest.raises(Unavailable):
        await room.checkout(tenant)
    [made] = at_provider(room, tenant)
    for delivery in room.sandbox.act(f"subscriptions/{made['id']}/pay", method="card") if delivered else []:
        await room.deliver(delivery)

    if not delivered:
        again = await room.checkout(tenant)
        assert again.checkout.subscription_id == made["id"]
        for delivery in room.sandbox.act(f"subscriptions/{made['id']}/pay", method="card"):
            await room.deliver(delivery)

    assert len(at_provider(room, tenant)) == 1
    assert (await room.current(tenant)).plan_code == "pro"
    assert (await room.balance(tenant))["subscription"] == 15_000


async def test_a_charge_told_without_its_payment_is_looked_up_and_funded_without_any_job(
    room: Room, tenant: str
) -> None:
    await room.provision(tenant)
    subscription_id = (await room.checkout(tenant)).checkout.subscription_id
    deliveries = room.sandbox.act(f"subscriptions/{subscription_id}/pay", method="card")
    [charged] = [each for each in deliveries if each["event"] == "subscription.charged"]
    document = json.loads(charged["body"])
    del document["payload"]["payment"]

    decided = await room.deliver({**charged, "body": json.dumps(document).encode()})

    assert (decided.outcome, decided.reason) == ("applied", "payment_missing")
    assert (await room.balance(tenant))["subscription"] == 15_000


async def test_a_trial_whose_answer_was_lost_and_that_was_set_up_meanwhile_brings_its_credits(
    room: Room, tenant: str
) -> None:
    await room.provision(tenant)
    room.sandbox.set("faults", kind="drop", method="POST", path="/v1/subscriptions", times=1)
    with pytest.raises(Unavailable):
        await room.checkout(tenant, trial=True)
    [made] = at_provider(room, tenant)
    room.sandbox.act(f"subscriptions/{made['id']}/authenticate", method="card", deliver=False)

    await room.checkout(tenant, trial=True)

    assert (await room.current(tenant)).status == pb.SUBSCRIPTION_STATUS_TRIALING
    assert (await room.balance(tenant))["subscription"] == 500
