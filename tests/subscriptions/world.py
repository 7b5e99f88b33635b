"""The room's decisions without its database: what ApplyPaymentEvent does, on plain values."""

from dataclasses import dataclass, field, replace
from datetime import timedelta

from services.subscriptions.rules import entitlements, funding, lifecycle
from services.subscriptions.rules.entitlements import ServiceEntitlement
from services.subscriptions.rules.events import PaymentEvent
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.funding import Grant, Situation
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.purchases import PackPurchase
from tests.subscriptions.builders import CATALOG, START


@dataclass
class World:
    """One tenant, what it bought, and what became of the events so far."""

    known: dict[str, KnownSubscription]
    purchases: dict[str, PackPurchase] = field(default_factory=dict)
    row: Subscription = field(default_factory=lambda: Subscription(id="sub_1", tenant_id="tn_1"))
    grants: dict[str, Grant] = field(default_factory=dict)
    payments: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    decided: set[str] = field(default_factory=set)
    services: tuple[ServiceEntitlement, ...] = ()
    grant_tasks: int = 0

    def apply(self, event: PaymentEvent) -> None:
        if event.body_sha256 in self.decided:
            return
        self.decided.add(event.body_sha256)
        known = self.known.get(event.subscription.id) if event.subscription else None
        order_id = event.payment.order_id if event.payment else ""
        decision = funding.decide(
            event,
            Situation(
                mode="test",
                tenant_known=True,
                subscription=known,
                plan=CATALOG.plans[known.plan_id] if known else None,
                purchase=self.purchases.get(order_id),
                payment_known=bool(event.payment and event.payment.id in self.payments),
            ),
        )
        if decision.payment is not None:
            self.payments.add(decision.payment.id)
        if decision.purchase_paid and event.payment is not None:
            purchase = self.purchases[order_id]
            self.purchases[order_id] = replace(purchase, payment_id=event.payment.id)
        if decision.grant is not None and decision.grant.reference_id not in self.grants:
            self.grants[decision.grant.reference_id] = decision.grant
            self.grant_tasks += 1
        if decision.subscription is not None:
            self.known[decision.subscription.id] = decision.subscription
            standing = lifecycle.derive(self.row, list(self.known.values()), START + timedelta(days=40))
            self.row = standing.row
            self.cancelled |= {each.id for each in standing.to_cancel}
            self.services = entitlements.build(CATALOG, self.row.entitling_plan_id, [], [], START)

    def state(self) -> tuple[object, ...]:
        """Everything that must not depend on the order in which events arrived."""
        return (
            self.row,
            self.known,
            self.purchases,
            {reference: grant.credits for reference, grant in self.grants.items()},
            self.payments,
            self.cancelled,
            self.services,
        )


def after(events: list[PaymentEvent], known: list[KnownSubscription], *purchases: PackPurchase) -> World:
    """The world once all these events arrived, in this order."""
    pending = known[-1] if known else None
    row = Subscription(id="sub_1", tenant_id="tn_1")
    if pending is not None:
        row = replace(
            row,
            pending_plan_id=pending.plan_id,
            pending_billing_cycle=pending.billing_cycle,
            pending_razorpay_subscription_id=pending.id,
            pending_kind="upgrade",
            pending_since=pending.purchased_at,
        )
    world = World(
        known={each.id: each for each in known},
        purchases={each.provider_order_id or "": each for each in purchases},
        row=row,
    )
    for event in events:
        world.apply(event)
    return world
