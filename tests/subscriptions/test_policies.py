"""What a deployment may decide about upgrades is what happens, in the quote and after it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from billing.subscriptions.v1 import subscriptions_maintenance_pb2_grpc, subscriptions_pb2_grpc
from pydantic import SecretStr

from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.rules.policy import Policy
from services.webhooks.clients import PaymentEvents
from shared.rpc.client import open_channel
from tests.conftest import Database
from tests.ledger.conftest import SECRETS
from tests.sandbox.running import KEY_ID, KEY_SECRET
from tests.subscriptions.conftest import POLICY, MovableClock, Room, serving
from tests.subscriptions.life import Life


@asynccontextmanager
async def room_with(room: Room, database: Database, policy: Policy) -> AsyncIterator[Room]:
    """A second room on the same database, which has decided otherwise."""
    razorpay = Razorpay(api_url=room.sandbox.url, key_id=KEY_ID, key_secret=KEY_SECRET)
    async with AsyncExitStack() as stack:
        serves = serving(database, room.ledger.address, razorpay, MovableClock(), policy)
        address, _, _ = await stack.enter_async_context(serves)
        product, rooms = [
            await stack.enter_async_context(open_channel(address, SecretStr(SECRETS[f"{name}_secret"])))
            for name in ("gateway", "room")
        ]
        yield replace(
            room,
            product=subscriptions_pb2_grpc.SubscriptionsServiceStub(product),
            maintenance=subscriptions_maintenance_pb2_grpc.SubscriptionsMaintenanceServiceStub(rooms),
            webhooks=PaymentEvents(rooms),
        )


@pytest.mark.parametrize(
    ("policy", "money_comes_back", "credits_stay"),
    [
        (POLICY, True, False),
        (replace(POLICY, upgrade_credits="none"), True, True),
        (replace(POLICY, upgrade_refund="none"), False, True),
    ],
    ids=["both go back", "only money goes back", "nothing goes back"],
)
async def test_an_upgrade_gives_and_takes_back_what_was_decided(
    room: Room, database: Database, tenant: str, policy: Policy, money_comes_back: bool, credits_stay: bool
) -> None:
    async with room_with(room, database, policy) as decided:
        life = Life(decided, tenant)
        await life.subscribe("starter")
        quote = await life.preview("pro")
        begun = await life.change("pro", token=quote.quote_token)
        await life.act(begun.checkout.subscription_id, "pay", method="card")
        await life.reconcile()

        assert (quote.refund_paise > 0, quote.credits_revoked == 0) == (money_comes_back, credits_stay)
        told = [refund["amount_paise"] for refund in life.refunds()]
        assert told == ([quote.refund_paise] if money_comes_back else [])
        assert await life.credits() == 18_000 - quote.credits_revoked
        await life.assert_stands("pro")
