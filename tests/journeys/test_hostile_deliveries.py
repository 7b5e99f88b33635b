"""One history told in every order, twice, in other words and all at once is one history."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from typing import Any

import httpx
import psycopg
import pytest
from billing.ledger.v1 import ledger_pb2 as ledger_pb
from billing.ledger.v1 import types_pb2 as types
from billing.subscriptions.v1 import catalog_pb2
from billing.subscriptions.v1 import subscriptions_pb2 as pb

from tests.journeys.test_kill import Clients, clients_of
from tests.suite.running import RunningSuite
from tests.webhooks.harness import eventually

pytestmark = pytest.mark.xdist_group("suite")

EVENTS = 7
PRO_CREDITS = 15_000


async def paid(clients: Clients, tenant: str) -> list[bytes]:
    """The bodies that tell of a tenant's first charge, not yet sent."""
    await clients.subscriptions.ProvisionTenant(
        pb.ProvisionTenantRequest(tenant_id=tenant, idempotency_key="provision")
    )
    begun = await clients.subscriptions.Checkout(
        pb.CheckoutRequest(
            tenant_id=tenant,
            idempotency_key="buy",
            plan_code="pro",
            cycle=catalog_pb2.BILLING_CYCLE_MONTHLY,
        )
    )
    told = await clients.sandbox.post(
        f"/_sandbox/subscriptions/{begun.checkout.subscription_id}/pay", json={"deliver": False}
    )
    told.raise_for_status()
    return [base64.b64decode(delivery["body_base64"]) for delivery in told.json()]


def in_other_words(body: bytes) -> bytes:
    """The same event from another serialiser: another hash, so nothing but its meaning says that it is known."""
    document: dict[str, Any] = json.loads(body)
    return json.dumps(dict(reversed(document.items())), indent=1).replace("/", "\\/").encode()


async def post(suite: RunningSuite, ingress: httpx.AsyncClient, body: bytes) -> None:
    secret = suite.runtime["secrets"]["razorpay_webhook_secret"].encode()
    headers = {
        "x-razorpay-signature": hmac.new(secret, body, hashlib.sha256).hexdigest(),
        "x-razorpay-event-id": "evt_every_body_claims_this_one",
    }
    answer = await ingress.post("/webhooks/razorpay", content=body, headers=headers)
    assert answer.status_code == 200, answer.text


async def test_every_rotation_twice_in_two_wordings_at_once_funds_once(
    running_suite: RunningSuite, tenant: str
) -> None:
    tenants = [f"{tenant}_{number}" for number in range(EVENTS)]
    async with clients_of(running_suite) as clients:
        histories = [await paid(clients, each) for each in tenants]
        assert {len(bodies) for bodies in histories} == {EVENTS}

        async def tell(bodies: list[bytes]) -> None:
            for body in bodies:
                worded = [body, in_other_words(body)] * 2
                await asyncio.gather(*(post(running_suite, clients.ingress, each) for each in worded))

        rotated = [bodies[turn:] + bodies[:turn] for turn, bodies in enumerate(histories)]
        await asyncio.gather(*(tell(bodies) for bodies in rotated))
        await eventually(lambda: all_decided(running_suite, tenants), seconds=30)

        for each in tenants:
            balance = (await clients.ledger.GetBalance(ledger_pb.GetBalanceRequest(tenant_id=each))).balance
            buckets = {bucket.bucket: bucket.credits for bucket in balance.buckets if bucket.credits}
            assert buckets == {types.BUCKET_SUBSCRIPTION: PRO_CREDITS}
            current = await clients.subscriptions.GetCurrent(pb.GetCurrentRequest(tenant_id=each))
            assert (current.plan_code, current.status) == ("pro", pb.SUBSCRIPTION_STATUS_ACTIVE)


async def all_decided(suite: RunningSuite, tenants: list[str]) -> bool:
    """Every delivery has its row, names its tenant and is done; and what it caused is paid."""
    with psycopg.connect(suite.runtime["database"]["urls"]["billing_operator"]) as db:
        [(events,)] = db.execute(
            "SELECT count(*) FROM webhook_events WHERE tenant_id = ANY(%s) AND processed AND outcome <> 'dead'",
            [tenants],
        ).fetchall()
        [(owed,)] = db.execute(
            "SELECT count(*) FROM billing_reconciliation_queue WHERE tenant_id = ANY(%s) AND completed_at IS NULL",
            [tenants],
        ).fetchall()
    return bool(events == len(tenants) * EVENTS * 2 and owed == 0)
