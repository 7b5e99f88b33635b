"""What befalls a running suite while canaries are in it: daily life, a provider, a database and processes that fail."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import httpx
import psycopg
from billing.ledger.v1 import ledger_funding_pb2 as funding_pb
from billing.ledger.v1 import ledger_pb2, types_pb2
from billing.scheduler.v1 import scheduler_pb2
from billing.subscriptions.v1 import catalog_pb2, subscriptions_admin_pb2
from billing.subscriptions.v1 import subscriptions_pb2 as subscriptions_pb
from billing.webhooks.v1 import webhooks_admin_pb2
from google.protobuf.message import Message

from suite.readiness import GrpcDoor, until_open
from tests.journeys.trespassing import Caller, Sink, methods, signed
from tests.suite.running import RunningSuite
from tests.webhooks.harness import charged, eventually

TENANT = "tenant_of_canaries"
JOBS = (
    *("webhook_health", "deliver_webhooks", "reconcile", "escalation"),
    *("sync_provider", "audit_integrity", "cleanup"),
)
REFUSING = (
    *("webhooks.webhook_events", "webhooks.webhook_admin_requests", "ops.billing_audit_log"),
    *("ledger.credit_transactions", "subscriptions.billing_info", "subscriptions.idempotency_keys"),
)


async def live(caller: Caller, turn: str) -> None:
    """What tenants and operators do, in their own words."""
    whisper = f"{caller.canaries.whisper} {turn}"
    key = f"{turn}-{caller.canaries.whisper[-4:]}"
    of: dict[str, Any] = {"tenant_id": TENANT, "idempotency_key": key}
    by: dict[str, Any] = {"actor": whisper, "reason": whisper}
    debit = ledger_pb2.DebitRequest(
        **of, credits=1, reason="article.post", description=whisper, metadata={"note": whisper, whisper: "x"}
    )
    grant = funding_pb.GrantCreditsRequest(
        **of,
        bucket=types_pb2.BUCKET_PERMANENT,
        credits=9,
        reference_id=key,
        reason="credit_pack",
        description=whisper,
    )
    info = subscriptions_pb.BillingInfo(
        company_name=whisper,
        address_line1=whisper,
        city=whisper,
        email=f"{caller.canaries.whisper}@x.example",
    )
    calls: list[tuple[str, Message]] = [
        ("ProvisionTenant", subscriptions_pb.ProvisionTenantRequest(**of)),
        ("UpdateBillingInfo", subscriptions_pb.UpdateBillingInfoRequest(**of, billing_info=info)),
        ("GrantCredits", grant),
        ("Debit", debit),
        ("Debit", debit),
        ("Debit", ledger_pb2.DebitRequest(**of, credits=2, reason="article.post", description=whisper)),
        (
            "Debit",
            ledger_pb2.DebitRequest(tenant_id=TENANT, idempotency_key=f"{key}-2", credits=10**9, reason="a"),
        ),
        (
            "Checkout",
            subscriptions_pb.CheckoutRequest(**of, plan_code="pro", cycle=catalog_pb2.BILLING_CYCLE_MONTHLY),
        ),
        ("BuyCredits", subscriptions_pb.BuyCreditsRequest(**of, pack_code="small")),
        ("CancelSubscription", subscriptions_pb.CancelSubscriptionRequest(**of, reason=whisper)),
        ("PauseJob", scheduler_pb2.PauseJobRequest(idempotency_key=key, job="addon_renewals", **by)),
        ("ResumeJob", scheduler_pb2.ResumeJobRequest(idempotency_key=key, job="addon_renewals", **by)),
        (
            "ReplayEvents",
            webhooks_admin_pb2.ReplayEventsRequest(idempotency_key=key, tenant_id=f"{TENANT}_0", **by),
        ),
        ("DiagnoseTenant", subscriptions_admin_pb2.DiagnoseTenantRequest(tenant_id=TENANT)),
        ("ListEvents", webhooks_admin_pb2.ListEventsRequest(page_size=100)),
        ("ListDeadLetters", webhooks_admin_pb2.ListDeadLettersRequest(page_size=100)),
        ("ListSignatureFailures", webhooks_admin_pb2.ListSignatureFailuresRequest(page_size=100)),
    ]
    for name, request in calls:
        await ask(caller, name, request)


async def ask(caller: Caller, name: str, request: Message) -> grpc.StatusCode:
    """One call of the only method of this name."""
    [method] = [each for each in methods() if each.name == name]
    status, _ = await caller.call(method, request.SerializeToString())
    return status


async def buy_with_a_card_in_the_body(caller: Caller, sandbox: httpx.AsyncClient) -> str:
    """A real payment, by its id, whose events hold what they must not: masked, and applied."""
    request = subscriptions_pb.BuyCreditsRequest(
        tenant_id=TENANT, idempotency_key="bought", pack_code="small"
    )
    assert await ask(caller, "BuyCredits", request) is grpc.StatusCode.OK
    order = subscriptions_pb.BuyCreditsResponse.FromString(caller.heard.answers[-2])
    paid = await sandbox.post(f"/_sandbox/orders/{order.order_id}/pay", json={"deliver": False})
    bodies = [json.loads(base64.b64decode(told["body_base64"])) for told in paid.raise_for_status().json()]
    for body in bodies:
        await knock_once(caller, body, status={200})
    return str(bodies[0]["payload"]["payment"]["entity"]["id"])


async def annoy_provider(caller: Caller, sandbox: httpx.AsyncClient, payment_id: str) -> None:
    """The provider's refusals quote what they were given, and more."""
    canaries = caller.canaries
    secret = caller.suite.runtime["secrets"]["razorpay_key_secret"]
    words = f"Card {canaries.card()} was declined; password: {canaries.secret()}, Basic {secret} and {secret}"
    faults: list[dict[str, Any]] = [
        {"kind": "refuse", "description": words, "code": canaries.card(), "field": canaries.card()},
        {"kind": "status", "status": 500, "description": words},
        {"kind": "refuse", "description": canaries.card()},
        {"kind": "drop"},
    ]
    for turn, fault in enumerate(faults):
        (await sandbox.post("/_sandbox/faults", json={**fault, "path": "/v1"})).raise_for_status()
        request = subscriptions_pb.BuyCreditsRequest(
            tenant_id=TENANT, idempotency_key=f"annoyed-{turn}", pack_code="small"
        )
        status = await ask(caller, "BuyCredits", request)
        caller.heard.expect(
            status is not grpc.StatusCode.OK, f"the provider's fault {turn} was met by nobody"
        )
    # A refund that is refused leaves its reason in rows, for a person to read.
    refused = {"kind": "refuse", "description": words, "path": "/v1/payments/*/refund", "times": 3}
    (await sandbox.post("/_sandbox/faults", json=refused)).raise_for_status()
    refund = subscriptions_admin_pb2.RefundPaymentRequest(
        tenant_id=TENANT, idempotency_key="refund", payment_id=payment_id, actor="asha", reason="annoyed"
    )
    await eventually(lambda: _refused(caller, refund), seconds=10)
    await sandbox.delete("/_sandbox/faults")


async def _refused(caller: Caller, refund: Message) -> bool:
    """Whether the provider was asked by now; the payment is known once its event was applied."""
    if await ask(caller, "RefundPayment", refund) is not grpc.StatusCode.OK:
        return False
    with psycopg.connect(admin_url(caller.suite)) as db:
        found = db.execute(
            "SELECT count(*) FROM subscriptions.billing_refunds WHERE status = 'failed'"
        ).fetchone()
    return bool(found and found[0])


@contextmanager
def refusing_tables(suite: RunningSuite) -> Iterator[None]:
    """Writes are refused by a constraint, whose complaint quotes the row."""

    def all_tables(change: str) -> None:
        with psycopg.connect(admin_url(suite), autocommit=True) as db:
            for table in REFUSING:
                db.execute(f"ALTER TABLE {table} {change}")

    all_tables("ADD CONSTRAINT refuses CHECK (false) NOT VALID")
    yield
    all_tables("DROP CONSTRAINT refuses")


def admin_url(suite: RunningSuite) -> str:
    database = suite.runtime["database"]
    password = (suite.data_dir / "postgres" / "password").read_text()
    return f"postgresql://billing:{password}@{database['host']}:{database['port']}/{database['name']}"


async def run_jobs(caller: Caller, sinks: tuple[Sink, ...]) -> None:
    """Alerts and notices go to sinks that fail first and answer with canaries."""
    notice = json.dumps({"planCode": "pro", "words": caller.canaries.whisper})
    with psycopg.connect(admin_url(caller.suite), autocommit=True) as db:
        db.execute(
            "INSERT INTO subscriptions.billing_notifications (id, tenant_id, kind, cycle_ref, payload)"
            " SELECT 'ntf_' || n, %s, 'past_due_day_1', 'sub:' || n, %s FROM generate_series(1, 4) n",
            [TENANT, notice],
        )
    for job in JOBS:
        request = scheduler_pb2.RunJobRequest(
            idempotency_key=f"by-hand-{job}",
            job=job,
            actor=caller.canaries.whisper,
            reason=caller.canaries.whisper,
        )
        status = await ask(caller, "RunJob", request)
        caller.heard.expect(status is grpc.StatusCode.OK, f"{job} did not run: {status}")

    async def told() -> bool:
        return all(each.received for each in sinks)

    await eventually(told, seconds=15)


async def killed_in_the_middle(caller: Caller, victims: tuple[str, ...]) -> None:
    """kill -9 while canaries are on their way, of one after the other."""
    suite = caller.suite
    before = {victim: suite.pid(victim) for victim in victims}
    traffic = [asyncio.create_task(knock_once(caller, status={200, 503, 0})) for _ in range(40)]
    traffic.append(asyncio.create_task(live(caller, "killed")))
    for victim in victims:
        await asyncio.sleep(0.05)
        suite.kill(victim)
    await asyncio.gather(*traffic)

    async def others() -> bool:
        return all(suite.pid(victim) not in (None, pid) for victim, pid in before.items())

    await eventually(others, seconds=30)
    doors = [GrpcDoor(room, address) for room, address in suite.runtime["addresses"].items()]
    async with asyncio.timeout(30):
        await asyncio.gather(*(until_open(door) for door in doors))


async def knock_once(caller: Caller, body: dict[str, Any] | None = None, *, status: set[int]) -> None:
    """A good delivery about a payment, with what nobody may keep in it."""
    suite = caller.suite
    body = body or json.loads(charged(f"{TENANT}_{caller.canaries.secret()[-6:]}"))
    entity = body["payload"]["payment"]["entity"]
    entity |= {
        "description": caller.canaries.card(),
        "card_number": caller.canaries.card(),
        "email": caller.canaries.whisper,
        "cvv": caller.canaries.secret(),
    }
    raw = json.dumps(body).encode()
    async with httpx.AsyncClient(base_url=suite.runtime["webhooks_http_url"], timeout=10) as http:
        try:
            answer = await http.post("/webhooks/razorpay", content=raw, headers=signed(suite, raw))
        except httpx.TransportError:
            caller.heard.expect(0 in status, "the ingress was gone")
            return
    caller.heard.answers += [answer.content, repr(answer.headers)]
    caller.heard.expect(
        answer.status_code in status, f"{answer.status_code} for a good delivery, not {status}"
    )
