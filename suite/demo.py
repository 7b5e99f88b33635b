"""The main job as a story: a signed Razorpay delivery becomes credits that a service spends.

Everything here goes through the doors that a product, Razorpay and an operator use.
"""

from __future__ import annotations

import asyncio
import base64
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import httpx
from billing.ledger.v1 import ledger_pb2 as ledger_pb
from billing.ledger.v1 import ledger_pb2_grpc
from billing.ledger.v1 import types_pb2 as types
from billing.subscriptions.v1 import catalog_pb2 as catalog_pb
from billing.subscriptions.v1 import subscriptions_pb2 as subscriptions_pb
from billing.subscriptions.v1 import subscriptions_pb2_grpc
from billing.webhooks.v1 import webhooks_admin_pb2 as webhooks_pb
from billing.webhooks.v1 import webhooks_admin_pb2_grpc
from google.protobuf.duration_pb2 import Duration
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from shared.errors import BillingError, FailedPrecondition
from shared.rpc.client import open_channel
from suite.files import Runtime

PATIENCE_SECONDS = 20.0

PRO_CREDITS = 15_000
MEDIUM_PACK_CREDITS = 2_200
BUSINESS_CREDITS = 50_000

Answer = TypeVar("Answer")


class StepFailed(Exception):
    """A step was not what it should be."""


@dataclass(frozen=True)
class Doors:
    """Stubs and clients for everybody who plays a part."""

    subscriptions: subscriptions_pb2_grpc.SubscriptionsServiceStub
    ledger: ledger_pb2_grpc.LedgerServiceStub
    webhooks_admin: webhooks_admin_pb2_grpc.WebhooksAdminServiceStub
    ingress: httpx.AsyncClient
    sandbox: httpx.AsyncClient


class Story:
    """Tells each step as it happens, and stops at the first that is not what it should be."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._steps: list[tuple[str, str, bool]] = []

    def tell(self, what: str, answer: str, *, ok: bool) -> None:
        self._steps.append((what, answer, ok))
        mark = "[green]✓[/]" if ok else "[red]✗[/]"
        self._console.print(f"{mark} {what}: [bold]{answer}[/]", highlight=False)
        if not ok:
            raise StepFailed(what)

    def table(self) -> Table:
        table = Table(title="What happened", title_justify="left", show_lines=False)
        table.add_column("#", justify="right")
        table.add_column("step")
        table.add_column("answer")
        table.add_column("")
        for number, (what, answer, ok) in enumerate(self._steps, start=1):
            table.add_row(str(number), what, answer, "✓" if ok else "✗")
        return table


def main(runtime: Runtime) -> int:
    """Tells the story against a running suite; 0 only if every step was what it should be."""
    console = Console()
    story = Story(console)
    try:
        asyncio.run(_tell(runtime, story))
    except StepFailed:
        outcome = 1
    except (BillingError, httpx.HTTPError, TimeoutError) as error:
        console.print(f"[red]✗ {type(error).__name__}: {error}[/]", highlight=False)
        outcome = 1
    else:
        outcome = 0
    console.print(story.table())
    console.print("Every step was what it should be." if outcome == 0 else "[red]The story broke off.[/]")
    return outcome


async def _tell(runtime: Runtime, story: Story) -> None:
    tenant = f"demo_{secrets.token_hex(4)}"
    async with _doors(runtime) as doors:
        await _provision(doors, story, tenant)
        await _buy_pro(doors, story, tenant)
        await _buy_pack(doors, story, tenant)
        await _spend(doors, story, tenant)
        await _hold(doors, story, tenant)
        await _look_back(doors, story, tenant)
        await _upgrade(doors, story, tenant)


async def _provision(doors: Doors, story: Story, tenant: str) -> None:
    provisioned = await doors.subscriptions.ProvisionTenant(
        subscriptions_pb.ProvisionTenantRequest(tenant_id=tenant, idempotency_key="provision")
    )
    story.tell(f"provision {tenant}", f"plan {provisioned.plan_code}", ok=provisioned.plan_code == "free")

    async def eleventh_post() -> ledger_pb.CheckLimitResponse:
        return await doors.ledger.CheckLimit(
            ledger_pb.CheckLimitRequest(
                tenant_id=tenant, limit_key="blog.posts", requested=1, current_usage=10
            )
        )

    checked = await _once_there(eleventh_post)
    story.tell(
        "may it publish an 11th post?",
        f"{'yes' if checked.decision.allowed else 'no'}: the free plan has {checked.decision.limit}",
        ok=not checked.decision.allowed and checked.decision.limit == 10,
    )


async def _buy_pro(doors: Doors, story: Story, tenant: str) -> None:
    checkout = (
        await doors.subscriptions.Checkout(
            subscriptions_pb.CheckoutRequest(
                tenant_id=tenant,
                idempotency_key="checkout-pro",
                plan_code="pro",
                cycle=catalog_pb.BILLING_CYCLE_MONTHLY,
            )
        )
    ).checkout
    story.tell(
        "check out Pro, monthly",
        f"{checkout.subscription_id} for {checkout.total_display}",
        ok=checkout.total_paise == 235_882,
    )

    deliveries = await _pay(doors, f"subscriptions/{checkout.subscription_id}/pay", method="card")
    events = [each["event"] for each in deliveries]
    story.tell(
        "the customer pays at Razorpay", f"{len(deliveries)} signed deliveries", ok=len(deliveries) == 7
    )

    charged = deliveries[events.index("subscription.charged")]
    story.tell(*await _deliver(doors, [charged], expected="subscription.charged"), ok=True)
    totals = await _balance_when(doors, tenant, PRO_CREDITS)
    subscription = totals.buckets[0]
    expires_at = subscription.next_expires_at.ToDatetime().strftime("%d %b %Y")
    story.tell(
        "the wallet",
        f"{subscription.credits:,} subscription credits until {expires_at}",
        ok=subscription.credits == PRO_CREDITS and subscription.HasField("next_expires_at"),
    )

    again = await _post(doors, charged)
    story.tell("the same delivery again", f"HTTP {again}", ok=again == 200)
    siblings = [each for each in deliveries if each is not charged]
    random.shuffle(siblings)
    story.tell(*await _deliver(doors, siblings, expected="its six siblings, shuffled"), ok=True)
    totals = await _balance(doors, tenant)
    story.tell("the wallet afterwards", f"{totals.available:,} credits", ok=totals.available == PRO_CREDITS)

    forged = await doors.ingress.post(
        "/webhooks/razorpay",
        content=base64.b64decode(charged["body_base64"]).replace(b"pay_", b"pax_"),
        headers=charged["headers"],
    )
    story.tell("the same body, altered", f"HTTP {forged.status_code}", ok=forged.status_code == 401)


async def _buy_pack(doors: Doors, story: Story, tenant: str) -> None:
    order = await doors.subscriptions.BuyCredits(
        subscriptions_pb.BuyCreditsRequest(tenant_id=tenant, idempotency_key="pack-1", pack_code="medium")
    )
    story.tell(
        "buy the medium credit pack",
        f"{order.order_id} for {order.total_display}",
        ok=order.total_paise == 166_000 and order.credits == MEDIUM_PACK_CREDITS,
    )
    deliveries = await _pay(doors, f"orders/{order.order_id}/pay", method="upi")
    story.tell(*await _deliver(doors, deliveries, expected="its captured payment and its siblings"), ok=True)
    totals = await _balance_when(doors, tenant, PRO_CREDITS + MEDIUM_PACK_CREDITS)
    permanent = totals.buckets[1]
    story.tell(
        "the wallet",
        f"{permanent.credits:,} permanent credits beside {totals.buckets[0].credits:,}",
        ok=permanent.credits == MEDIUM_PACK_CREDITS and not permanent.HasField("next_expires_at"),
    )


async def _spend(doors: Doors, story: Story, tenant: str) -> None:
    first = _debit(tenant, "publish-1", 14_000)
    answer = await doors.ledger.Debit(first)
    story.tell("debit 14,000", _parts(answer.transaction), ok=_moved(answer.transaction) == (-14_000, 0))
    answer = await doors.ledger.Debit(_debit(tenant, "publish-2", 1_500))
    story.tell("debit 1,500", _parts(answer.transaction), ok=_moved(answer.transaction) == (-1_000, -500))
    again = await doors.ledger.Debit(first)
    story.tell(
        "the first debit again, same key",
        "replayed, nothing taken" if again.replayed else "taken twice",
        ok=again.replayed and (await _balance(doors, tenant)).available == 1_700,
    )
    try:
        await doors.ledger.Debit(_debit(tenant, "publish-3", 1_701))
    except FailedPrecondition as refusal:
        story.tell(
            "debit 1,701",
            f"{refusal.reason}: {refusal.metadata.get('shortfall')} missing",
            ok=refusal.reason == "INSUFFICIENT_CREDITS" and refusal.metadata.get("shortfall") == "1",
        )
    else:
        story.tell("debit 1,701", "taken, though only 1,700 were there", ok=False)


async def _hold(doors: Doors, story: Story, tenant: str) -> None:
    placed = await doors.ledger.PlaceHold(
        ledger_pb.PlaceHoldRequest(
            tenant_id=tenant,
            idempotency_key="render",
            credits=400,
            ttl=Duration(seconds=600),
            reason="media.render",
        )
    )
    story.tell(
        "hold 400 for work of unknown cost",
        f"{placed.balance.available:,} left to spend",
        ok=placed.balance.available == 1_300,
    )
    captured = await doors.ledger.CaptureHold(
        ledger_pb.CaptureHoldRequest(
            tenant_id=tenant, idempotency_key="render-done", hold_id=placed.hold.id, credits=250
        )
    )
    story.tell(
        "it came to 250",
        f"{captured.hold.released} set free, {captured.balance.available:,} left",
        ok=(captured.hold.released, captured.balance.available) == (150, 1_450),
    )
    refunded = await doors.ledger.RefundDebit(
        ledger_pb.RefundDebitRequest(
            tenant_id=tenant,
            idempotency_key="render-failed",
            transaction_id=captured.transaction.id,
            reason="media.render_failed",
        )
    )
    story.tell(
        "the work was no good: refund",
        f"{refunded.balance.available:,} again",
        ok=refunded.balance.available == 1_700 and refunded.refundable == 0,
    )


async def _look_back(doors: Doors, story: Story, tenant: str) -> None:
    current = await doors.subscriptions.GetCurrent(subscriptions_pb.GetCurrentRequest(tenant_id=tenant))
    story.tell(
        "where it stands",
        f"{current.plan_name}, {current.credits.available:,} credits",
        ok=current.plan_code == "pro",
    )

    async def upgraded() -> ledger_pb.CheckLimitResponse | None:
        checked = await doors.ledger.CheckLimit(
            ledger_pb.CheckLimitRequest(
                tenant_id=tenant, limit_key="blog.posts", requested=1, current_usage=10
            )
        )
        return checked if checked.decision.allowed else None

    checked = await _once_there(upgraded)
    story.tell(
        "may it publish an 11th post now?",
        f"yes: Pro has {checked.decision.limit}",
        ok=checked.decision.limit == 500,
    )
    listed = await doors.ledger.ListTransactions(ledger_pb.ListTransactionsRequest(tenant_id=tenant))
    amounts = [transaction.amount for transaction in reversed(listed.transactions)]
    balance = await _balance(doors, tenant)
    story.tell(
        "its transactions",
        f"{' '.join(f'{amount:+,}' for amount in amounts)} = {sum(amounts):,}",
        ok=amounts == [PRO_CREDITS, MEDIUM_PACK_CREDITS, -14_000, -1_500, 0, -250, 250]
        and sum(amounts) == balance.posted,
    )


async def _upgrade(doors: Doors, story: Story, tenant: str) -> None:
    quote = (
        await doors.subscriptions.PreviewChange(
            subscriptions_pb.PreviewChangeRequest(
                tenant_id=tenant, plan_code="business", cycle=catalog_pb.BILLING_CYCLE_MONTHLY
            )
        )
    ).quote
    story.tell(
        "what would Business cost?",
        f"₹{quote.total_paise / 100:,.2f} now, ₹{quote.refund_paise / 100:,.2f} of Pro come back, and with them "
        f"{quote.credits_revoked:,} credits, though Pro's are spent",
        ok=quote.total_paise == 589_882 and 235_000 < quote.refund_paise <= 235_882,
    )
    changed = await doors.subscriptions.ChangePlan(
        subscriptions_pb.ChangePlanRequest(
            tenant_id=tenant,
            idempotency_key="business",
            plan_code="business",
            cycle=catalog_pb.BILLING_CYCLE_MONTHLY,
            quote_token=quote.quote_token,
        )
    )
    story.tell(
        "change to it, as quoted",
        f"{changed.checkout.subscription_id} waits to be paid",
        ok=changed.pending_change.plan_code == "business",
    )
    deliveries = await _pay(doors, f"subscriptions/{changed.checkout.subscription_id}/pay", method="upi")
    random.shuffle(deliveries)
    story.tell(*await _deliver(doors, deliveries, expected="its seven deliveries, shuffled"), ok=True)

    async def settled() -> subscriptions_pb.ListInvoicesResponse | None:
        listed = await doors.subscriptions.ListInvoices(
            subscriptions_pb.ListInvoicesRequest(tenant_id=tenant)
        )
        return listed if len(listed.invoices) == 4 else None

    papers = (await _once_there(settled)).invoices
    current = await doors.subscriptions.GetCurrent(subscriptions_pb.GetCurrentRequest(tenant_id=tenant))
    balance = await _balance(doors, tenant)
    story.tell(
        "where it stands now",
        f"{current.plan_name}, {balance.available:,} credits",
        ok=current.plan_code == "business"
        and balance.available == 1_700 + BUSINESS_CREDITS - quote.credits_revoked,
    )
    notes = [each for each in papers if each.kind == subscriptions_pb.INVOICE_KIND_CREDIT_NOTE]
    story.tell(
        "its papers",
        f"{len(papers) - len(notes)} tax invoices, and a credit note over {notes[0].total_display}",
        ok=[note.total_paise for note in notes] == [quote.refund_paise],
    )


def _debit(tenant: str, key: str, credits: int) -> ledger_pb.DebitRequest:
    return ledger_pb.DebitRequest(
        tenant_id=tenant, idempotency_key=key, credits=credits, reason="blog.publish", reference_id=key
    )


def _moved(transaction: types.Transaction) -> tuple[int, int]:
    """(subscription, permanent) credits that a transaction moved."""
    moved = {amount.bucket: amount.credits for amount in transaction.buckets}
    return moved.get(types.BUCKET_SUBSCRIPTION, 0), moved.get(types.BUCKET_PERMANENT, 0)


def _parts(transaction: types.Transaction) -> str:
    subscription, permanent = _moved(transaction)
    return f"{-subscription:,} subscription and {-permanent:,} permanent credits"


async def _pay(doors: Doors, path: str, *, method: str) -> list[dict[str, Any]]:
    """What Razorpay would send about a payment, in its order; the story sends the bytes itself."""
    answer = await doors.sandbox.post(f"/_sandbox/{path}", json={"method": method, "deliver": False})
    answer.raise_for_status()
    found = answer.json()
    return list(found["deliveries"] if isinstance(found, dict) else found)


async def _post(doors: Doors, delivery: dict[str, Any]) -> int:
    body = base64.b64decode(delivery["body_base64"])
    return (
        await doors.ingress.post("/webhooks/razorpay", content=body, headers=delivery["headers"])
    ).status_code


async def _deliver(doors: Doors, deliveries: Sequence[dict[str, Any]], *, expected: str) -> tuple[str, str]:
    """Posts deliveries and waits until each was decided: what was delivered, and what became of it."""
    for delivery in deliveries:
        status = await _post(doors, delivery)
        if status != 200:
            raise StepFailed(f"{delivery['event']} was answered with HTTP {status}")
    outcomes = []
    for delivery in deliveries:
        outcomes.append(await _once_there(partial(_outcome, doors, str(delivery["event_id"]))))
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes))
    return f"deliver {expected}", f"HTTP 200; {counts}"


async def _outcome(doors: Doors, event_id: str) -> str | None:
    found = await doors.webhooks_admin.ListEvents(webhooks_pb.ListEventsRequest(event_id=event_id))
    decided = [event for event in found.events if event.status != webhooks_pb.EVENT_STATUS_PENDING]
    return str(decided[0].outcome) if decided else None


async def _balance(doors: Doors, tenant: str) -> types.Balance:
    answer: ledger_pb.GetBalanceResponse = await doors.ledger.GetBalance(
        ledger_pb.GetBalanceRequest(tenant_id=tenant)
    )
    return answer.balance


async def _balance_when(doors: Doors, tenant: str, credits: int) -> types.Balance:
    """The balance once it is at least this; grants follow the delivery that caused them within moments."""

    async def enough() -> types.Balance | None:
        balance = await _balance(doors, tenant)
        return balance if balance.available >= credits else None

    return await _once_there(enough)


async def _once_there(ask: Callable[[], Awaitable[Answer | None]]) -> Answer:
    """Asks until there is an answer; what another room has yet to write is not there at once."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                answer = await ask()
            except BillingError as error:
                if error.code != "NOT_FOUND":
                    raise
                answer = None
            if answer is not None:
                return answer
            await asyncio.sleep(0.05)


@asynccontextmanager
async def _doors(runtime: Runtime) -> AsyncIterator[Doors]:
    product = SecretStr(runtime.secrets["gateway_secret"])
    operator = SecretStr(runtime.secrets["operator_secret"])
    async with (
        open_channel(runtime.addresses["subscriptions"], product) as subscriptions,
        open_channel(runtime.addresses["ledger"], product) as ledger,
        open_channel(runtime.addresses["webhooks"], operator) as webhooks,
        httpx.AsyncClient(base_url=runtime.webhooks_http_url, timeout=10, trust_env=False) as ingress,
        httpx.AsyncClient(base_url=runtime.sandbox_url, timeout=10, trust_env=False) as sandbox,
    ):
        yield Doors(
            subscriptions_pb2_grpc.SubscriptionsServiceStub(subscriptions),
            ledger_pb2_grpc.LedgerServiceStub(ledger),
            webhooks_admin_pb2_grpc.WebhooksAdminServiceStub(webhooks),
            ingress,
            sandbox,
        )
