"""A tenant's life at the provider, as it happens, and what is told of it.

The provider is the sandbox's own world in this process, on a clock of ours. What the room does there (ending what was
replaced, giving back what is unused) happens as it would: when the room, told of everything at once, owes it.
"""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from sandbox.errors import Refusal
from sandbox.state import charges, due, payments, refunds, subscriptions
from sandbox.state.catalogue import create_plan
from sandbox.state.world import Record, World
from sandbox.webhooks.delivery import serialise
from services.subscriptions.rpc.payment_events import event_from
from services.subscriptions.rules import changes
from services.subscriptions.rules.amounts import gst_inside
from services.subscriptions.rules.catalog import Cycle
from services.subscriptions.rules.changes import Situation
from services.subscriptions.rules.claims import SMALLEST_REFUND_PAISE, Paid
from services.subscriptions.rules.events import PaymentEvent
from services.subscriptions.rules.funding import Refund
from services.subscriptions.rules.purchases import TOTAL_COUNT, Intent, PackPurchase
from services.subscriptions.rules.tasks import NewTask
from services.webhooks.clients import _to_proto
from services.webhooks.rules.delivery import Claimed
from services.webhooks.rules.providers.razorpay import normalise
from shared.errors import BillingError
from tests.subscriptions.builders import CATALOG, START
from tests.subscriptions.histories.books import POLICY, TENANT, Books

PRO_TRIAL = timedelta(days=14)


@dataclass(frozen=True)
class Told:
    """An event of the provider; one that we caused by a task cannot come before that task."""

    at: datetime
    event: PaymentEvent
    needs: str = ""

    @property
    def is_money_back(self) -> bool:
        """What is told of refunds and disputes."""
        return self.event.event_type.startswith(("refund.", "payment.dispute."))


@dataclass(frozen=True)
class Done:
    """Something that was decided here, on what was known then: of subscriptions, of money that went back, or of both."""

    at: datetime
    do: Callable[[Books, datetime], None]
    on: str = "subscriptions"


Item = Told | Done


def as_event(body: bytes, received_at: datetime) -> PaymentEvent:
    """A body on the way that it takes through both rooms."""
    sha256 = hashlib.sha256(body).hexdigest()
    claimed = Claimed(
        id="evt", provider="razorpay", account_id="", mode="test", body_sha256=sha256, event_id=sha256[:14], body=body,
        received_at=received_at, retry_count=0, attempt=1, event_type=None, tenant_id=None, body_removed_at=None,
        request_id="req",
    )  # fmt: skip
    return event_from(_to_proto(claimed, normalise(body)), lambda: received_at)


class Life:
    """The provider, its clock, the room that hears everything at once and in order, and the log of it all."""

    def __init__(self) -> None:
        self.now = START
        self.world = World(lambda: self.now, account_id="acc_of_the_tests")
        self.books = Books()
        self.log: list[Item] = []
        self._performed: set[str] = set()
        self._number = 0
        self._plans: dict[tuple[str, Cycle], str] = {}

    def pass_time(self, by: timedelta) -> None:
        """Wait; whatever time alone makes due, here and there, is done."""
        self.now = (self.now + by).replace(microsecond=0)
        for subscription in self._subscriptions():
            inner, ends = subscription.inner, subscription.entity["current_end"]
            if inner.get("cancel_at_cycle_end") and ends and ends <= self.world.now():
                self.happen(partial(due.step, subscription_id=subscription.entity["id"]))
        if self.books.is_due(self.now):
            self.decide(Books.settle_due)

    def happen(self, act: Callable[[World], Any], *, needs: str = "") -> bool:
        """Something happens at the provider and is told; False if it refused."""
        try:
            act(self.world)
        except Refusal:
            self.world.rollback()
            return False
        told = [serialise(event, self.world.account_id) for event in self.world.events()]
        self.world.commit()
        for body in told:
            event = as_event(body, self.now)
            ours = event.refund.notes.get("refund_id") if event.refund else None
            self.log.append(Told(self.now, event, f"refund:{ours}" if ours else needs))
            self.books.apply(event, self.now)
        self._perform()
        self.now += timedelta(seconds=61)
        return True

    def decide(self, do: Callable[[Books, datetime], None], *, on: str = "subscriptions") -> None:
        """Something is decided in the room."""
        self.log.append(Done(self.now, do, on))
        do(self.books, self.now)
        self._perform()
        self.now += timedelta(seconds=61)

    def _perform(self) -> None:
        while owed := [task for key, task in self.books.tasks.items() if key not in self._performed]:
            for task in owed:
                self._performed.add(task.idempotency_key)
                if task.counterpart == "provider":
                    self._ask(task)

    def _ask(self, task: NewTask) -> None:
        key, payload = task.idempotency_key, task.payload
        if task.task_type == "cancel_provider_subscription":
            subscription_id = payload["razorpaySubscriptionId"]
            at_end = bool(payload.get("atCycleEnd"))
            self.happen(
                lambda world: subscriptions.cancel(world, subscription_id, at_cycle_end=at_end), needs=key
            )
        elif task.task_type == "refund_payment":
            request = {"amount": payload["amountPaise"], "notes": payload["notes"]}
            self.happen(
                lambda world: refunds.create_refund(world, payload["paymentId"], dict(request)), needs=key
            )

    # What a tenant begins here.

    def checkout(
        self, plan: str, cycle: Cycle, *, trial: bool = False, count: int = 0, lost: bool = False
    ) -> None:
        """A purchase from nothing, or of what follows something that ran out or did not get paid."""
        row, live = self.books.row, self.books.live
        if live is not None and not live.ended and row.status != "past_due":
            return
        first = replaces = None
        if (
            live is not None
            and row.status != "past_due"
            and row.ends_at
            and row.ends_at > self.now + timedelta(hours=1)
        ):
            first, replaces = row.ends_at, live.id
        elif trial and not row.has_used_trial:
            first = self.now + PRO_TRIAL
        self._purchase(
            "checkout", plan, cycle, first=first, replaces=replaces, trial=trial, count=count, lost=lost
        )

    def change(self, plan: str, cycle: Cycle) -> None:
        """ChangePlan, quoted and executed at one moment."""
        books, live = self.books, self.books.live
        granted = paid = None
        found = [p for p in books.payments.values() if live and p.razorpay_subscription_id == live.id]
        if found:
            last = max(found, key=lambda p: (p.period_start or START, p.id))
            assert last.period_start is not None
            assert last.period_end is not None
            paid = Paid(
                last.id, last.amount_paise, last.period_start, last.period_end, last.received_at,
                books.given_back(last.id),
            )  # fmt: skip
            granted = [(g, books.taken_of(g.reference_id)) for g in books.granted_of(last.id)]
        situation = Situation(
            books.row, live, CATALOG, CATALOG.plans.get(books.row.plan_id), paid, granted or []
        )
        try:
            quote = changes.quote(situation, CATALOG.plans[plan], cycle, at=self.now, policy=POLICY)
        except BillingError:
            return
        if quote.kind == "cancellation":
            self.decide(Books.schedule_end)
            return
        self._purchase(
            quote.kind, plan, cycle, first=quote.effective_at, replaces=quote.replaces_subscription_id,
            quoted=(quote.quoted_at, quote.payment_id),
        )  # fmt: skip

    def _purchase(
        self, kind: str, plan: str, cycle: Cycle, *, first: datetime | None, replaces: str | None,
        trial: bool = False, count: int = 0, quoted: tuple[datetime, str | None] | None = None, lost: bool = False,
    ) -> None:  # fmt: skip
        self._number += 1
        first = first.replace(microsecond=0) if first else None
        intent = Intent(
            id=f"int_{self._number}", tenant_id=TENANT, idempotency_key="", kind=kind, plan_id=plan, billing_cycle=cycle,
            with_trial=trial, amount_paise=CATALOG.plans[plan].price_paise(cycle),
            tax_paise=CATALOG.plans[plan].tax_paise(cycle), currency="INR", first_charge_at=first, provider="razorpay",
            provider_plan_id=self._plan(plan, cycle), provider_subscription_id=None, attempted_at=self.now,
            created_at=self.now, replaces_subscription_id=replaces, quoted_at=quoted[0] if quoted else None,
            quoted_payment_id=quoted[1] if quoted else None,
        )  # fmt: skip
        made: list[Record] = []
        request = {
            "plan_id": intent.provider_plan_id, "total_count": count or TOTAL_COUNT[cycle], "notes": intent.notes,
        }  # fmt: skip
        request |= {"start_at": int(first.timestamp())} if first else {}
        if not self.happen(lambda world: made.append(subscriptions.create(world, request))):
            return
        if lost:
            self.decide(lambda books, now: books.intents.update({intent.id: intent}))
        else:
            self.decide(lambda books, now: books.begin(intent, made[0].entity["id"]))

    def _plan(self, plan: str, cycle: Cycle) -> str:
        if (plan, cycle) not in self._plans:
            total = CATALOG.plans[plan].price_paise(cycle) + CATALOG.plans[plan].tax_paise(cycle)
            item = {"name": plan, "amount": total, "currency": "INR"}
            made = create_plan(self.world, {"period": cycle, "interval": 1, "item": item})
            self.world.commit()
            self._plans[plan, cycle] = made.entity["id"]
        return self._plans[plan, cycle]

    def buy_pack(self, pack: str, *, fails_first: bool, paid: bool = True) -> None:
        """BuyCredits and a payment of its order, which may fail and come back."""
        self._number += 1
        number, price = self._number, CATALOG.credit_packs[pack].total_paise
        made: list[Record] = []
        request = {"amount": price, "currency": "INR", "receipt": f"pur_{number}"}
        self.happen(lambda world: made.append(payments.create_order(world, dict(request))))
        order_id = made[0].entity["id"]
        purchase = PackPurchase(
            id=f"pur_{number}", tenant_id=TENANT, idempotency_key="", pack_id=pack,
            credits=CATALOG.credit_packs[pack].credits, amount_paise=price, tax_paise=gst_inside(price), currency="INR",
            provider="razorpay", provider_order_id=order_id, payment_id=None,
        )  # fmt: skip
        self.decide(lambda books, now: books.purchases.update({order_id: purchase}))
        failed: list[Record] = []
        if fails_first:
            self.happen(lambda world: failed.append(payments.fail_order(world, order_id, method="upi")))
        if paid:
            back = failed[0].entity["id"] if failed else None
            self.happen(lambda world: payments.pay_order(world, order_id, method="upi", payment_id=back))

    def end_at_period_end(self) -> None:
        """CancelSubscription at the period's end."""
        live, row = self.books.live, self.books.row
        if live is None or live.ended or row.has_pending_change or row.cancel_at_period_end:
            return
        if row.status in ("active", "trialing"):
            self.decide(Books.schedule_end)

    def end_now(self) -> None:
        """CancelSubscription now."""
        if self.books.live is not None:
            self.decide(Books.end_now)

    def refund(self, payment_id: str, share: float) -> None:
        """RefundPayment: the provider is asked by a task."""
        payment = self.books.payments[payment_id]
        left = payment.amount_paise - self.books.given_back(payment_id)
        amount = max(SMALLEST_REFUND_PAISE, int(payment.amount_paise * share))
        if amount > left:
            return
        self._number += 1
        refund = Refund(f"rfd_ours_{self._number}", payment_id, None, "refund", amount, "INR", "pending")
        self.decide(lambda books, now: books.refund(replace(refund)))

    # What customers and banks do there.

    def pay(self, subscription_id: str, method: str) -> None:
        """The next charge succeeds, whichever it is, when it is due."""
        entity = self.world.get("subscription", subscription_id).entity
        if entity["status"] in ("authenticated", "active") and entity["charge_at"]:
            at = datetime.fromtimestamp(entity["charge_at"], UTC) + timedelta(hours=3)
            self.pass_time(max(at - self.now, timedelta()))
        taking_over = self._takes_over(subscription_id)
        first = entity["status"] == "created"
        if taking_over:  # what an upgrade gives back depends on what is known to have gone back before
            self.decide(lambda books, now: None, on="money back")
        self.happen(lambda world: charges.pay(world, subscription_id, method=method if first else None))
        if taking_over:
            self.decide(lambda books, now: None, on="everything")

    def _takes_over(self, subscription_id: str) -> bool:
        return len(self.world.all("subscription")) > 1 and bool(subscription_id)

    def fail(self, subscription_id: str) -> None:
        """The next charge fails, when it is due."""
        entity = self.world.get("subscription", subscription_id).entity
        if entity["status"] in ("authenticated", "active", "pending") and entity["charge_at"]:
            at = datetime.fromtimestamp(entity["charge_at"], UTC) + timedelta(hours=3)
            self.pass_time(max(at - self.now, timedelta()))
        self.happen(lambda world: charges.fail(world, subscription_id))

    def authenticate(self, subscription_id: str, token_paise: int) -> None:
        """The mandate of a trial or of a successor, with or without a token payment that goes back at once."""
        self.happen(
            lambda world: charges.authenticate(world, subscription_id, method="upi", token_paise=token_paise)
        )

    def charge_late(self, subscription_id: str) -> None:
        """A debit that was on its way when the subscription was cancelled: charged after the end."""

        def act(world: World) -> None:
            subscription = world.edit("subscription", subscription_id)
            entity = subscription.entity
            if entity["status"] != "cancelled" or not entity["paid_count"]:
                raise Refusal("only what was cancelled is charged late")
            inner = subscription.inner
            inner["cycles"] += 1
            entity["current_start"] = entity["current_end"]
            entity["current_end"] = subscriptions.cycle_end(
                world, subscription, entity["start_at"], inner["cycles"]
            )
            amount = world.get("plan", entity["plan_id"]).entity["item"]["amount"]
            charges.bill(world, subscription, amount, [])
            _, _, payment = charges._collect(world, subscription, description="late")
            entity["paid_count"] += 1
            as_it_was = copy.deepcopy(entity) | {"status": "active", "ended_at": None}
            world.emit(
                "subscription.charged", ["subscription", "payment"], subscription=as_it_was, payment=payment.entity
            )  # fmt: skip

        self.decide(lambda books, now: None, on="money back")
        self.happen(act)
        self.decide(lambda books, now: None, on="everything")

    def subscription_ids(self) -> list[str]:
        """All that the tenant ever began, the oldest first."""
        return [record.entity["id"] for record in self._subscriptions()]

    def ids(self, kind: str) -> list[str]:
        """All records of a kind at the provider, the oldest first."""
        return [record.entity["id"] for record in self.world.all(kind)]

    def _subscriptions(self) -> list[Record]:
        return self.world.all("subscription")
