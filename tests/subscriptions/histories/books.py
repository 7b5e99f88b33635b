"""The room without its database: it keeps what the store keeps and decides by the room's own rules."""

from dataclasses import dataclass, field, replace
from datetime import datetime

from services.subscriptions.rules import claims, entitlements, funding, lifecycle, purchases, scheduled, tasks
from services.subscriptions.rules.claims import Claim, Granted, Paid, Revocation
from services.subscriptions.rules.entitlements import ServiceEntitlement
from services.subscriptions.rules.events import PaymentEvent
from services.subscriptions.rules.fence import KnownSubscription
from services.subscriptions.rules.funding import Decision, Dispute, Grant, Payment, Refund, Situation
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.policy import Policy
from services.subscriptions.rules.purchases import Intent, PackPurchase
from services.subscriptions.rules.tasks import NewTask
from tests.subscriptions.builders import CATALOG

POLICY = Policy()
TENANT = "tn_1"


@dataclass
class Books:
    """All that the room holds of one tenant."""

    row: Subscription = field(default_factory=lambda: Subscription(id="sub_1", tenant_id=TENANT))
    intents: dict[str, Intent] = field(default_factory=dict)
    known: dict[str, KnownSubscription] = field(default_factory=dict)
    purchases: dict[str, PackPurchase] = field(default_factory=dict)
    payments: dict[str, Payment] = field(default_factory=dict)
    grants: dict[str, Grant] = field(default_factory=dict)
    refunds: dict[str, Refund] = field(default_factory=dict)
    disputes: dict[str, Dispute] = field(default_factory=dict)
    revocations: dict[str, Revocation] = field(default_factory=dict)
    restored: set[str] = field(default_factory=set)
    credit_notes: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, NewTask] = field(default_factory=dict)
    decided: set[str] = field(default_factory=set)
    services: tuple[ServiceEntitlement, ...] = ()

    def apply(self, event: PaymentEvent, now: datetime) -> Decision | None:
        """ApplyPaymentEvent; None for what was decided before."""
        if event.body_sha256 in self.decided:
            return None
        intent = self._begun_by(event)
        known = self._known(event, intent)
        decision = funding.decide(event, self._situation(event, known))
        self._write(event, decision, intent, now)
        if decision.subscription is not None or decision.payment is not None:
            begun = None
            if intent is not None and decision.subscription is not None:
                begun = purchases.begun(self.row, intent, decision.subscription.id)
            self.settle(now, changed=begun)
        self._documents(decision, now)
        self.decided.add(event.body_sha256)
        return decision

    def owe(self, task: NewTask) -> None:
        """Write a task; a second one with the same key is the same task."""
        self.tasks.setdefault(task.idempotency_key, task)

    def begin(self, intent: Intent, subscription_id: str) -> None:
        """A purchase stands at the provider, and we heard its id."""
        self.intents[intent.id] = replace(intent, provider_subscription_id=subscription_id)
        self.known[subscription_id] = purchases.first_knowledge(intent, subscription_id)
        self.drop_pending()
        self.settle(intent.created_at, changed=purchases.begun(self.row, intent, subscription_id))

    def drop_pending(self) -> None:
        """A purchase that was not paid makes way."""
        previous = self.known.get(self.row.pending_razorpay_subscription_id or "")
        if previous is not None and not previous.ended:
            self.owe(tasks.drop_subscription(previous, "another purchase was begun"))

    def schedule_end(self, now: datetime) -> None:
        """CancelSubscription at the period's end."""
        self.settle(now, changed=self.row.ending(now))

    def end_now(self, now: datetime) -> None:
        """CancelSubscription now."""
        live = self.live
        assert live is not None
        self.drop_pending()
        self.known[live.id] = replace(
            live, released_at=now, released_paid_count=live.paid_count, released_by="cancellation"
        )
        if not live.ended:
            self.owe(tasks.cancel_subscription(live, "the product asked for it"))
        self.settle(now, changed=self.row.without_pending())

    def refund(self, refund: Refund) -> None:
        """RefundPayment: money is owed, the provider does not know yet."""
        self.refunds[refund.id] = refund
        self.owe(tasks.refund_payment(TENANT, refund, notes={}))

    def is_due(self, now: datetime) -> bool:
        """What the store's list_due would find."""
        row, live, ends_at = self.row, self.live, self.row.ends_at
        if row.pending_effective_at and row.pending_razorpay_subscription_id:
            return row.pending_effective_at <= now
        if not row.cancel_at_period_end or ends_at is None or live is None:
            return False
        untold = live.end_requested_at is None and live.status in ("active", "authenticated")
        return ends_at <= now or (untold and ends_at <= now + POLICY.cancel_lead)

    def settle_due(self, now: datetime) -> None:
        """What time alone makes due."""
        step = scheduled.end(self.row, self.live, now, POLICY.cancel_lead)
        if step is not None:
            self.known[step.known.id] = step.known
            self.owe(tasks.end_subscription(step.known, at_cycle_end=step.at_cycle_end, since=now))
        self.settle(now)

    @property
    def live(self) -> KnownSubscription | None:
        """The subscription that the row names."""
        return self.known.get(self.row.razorpay_subscription_id or "")

    def settle(self, now: datetime, *, changed: Subscription | None = None) -> None:
        """Derive the row and what follows from it."""
        standing = lifecycle.derive(changed or self.row, list(self.known.values()), now)
        self.row = standing.row
        for obsolete in standing.to_cancel:
            self.owe(tasks.cancel_subscription(obsolete, "a newer purchase is live"))
        self._give_back_unused()
        self.services = entitlements.build(CATALOG, self.row.entitling_plan_id, [], [], now)

    def granted_of(self, payment_id: str) -> list[Granted]:
        """What a payment brought."""
        found = [grant for grant in self.grants.values() if grant.payment_id == payment_id]
        return [Granted(g.reference_id, g.credits, g.period_start, g.period_end) for g in found]

    def taken_of(self, grant_reference_id: str) -> int:
        """What was taken of a grant and not given back."""
        return sum(each.credits for each in self._taken({grant_reference_id}))

    def given_back(self, payment_id: str) -> int:
        """Money that went back or is on its way."""
        refunded = [r for r in self.refunds.values() if r.payment_id == payment_id and r.status != "failed"]
        lost = [d for d in self.disputes.values() if d.payment_id == payment_id and d.status == "lost"]
        return sum(r.amount_paise for r in refunded) + sum(d.amount_deducted_paise for d in lost)

    def _begun_by(self, event: PaymentEvent) -> Intent | None:
        snapshot = event.subscription
        if snapshot is None or snapshot.id in self.known:
            return None
        intent = self.intents.get(snapshot.notes.get("intent_id", ""))
        return intent if intent is not None and purchases.was_begun_by(intent, snapshot) else None

    def _known(self, event: PaymentEvent, intent: Intent | None) -> KnownSubscription | None:
        if event.subscription is None:
            return None
        if intent is not None:
            return purchases.first_knowledge(intent, event.subscription.id)
        return self.known.get(event.subscription.id)

    def _situation(self, event: PaymentEvent, known: KnownSubscription | None) -> Situation:
        payment_id = event.payment.id if event.payment else ""
        told = {payment_id}
        told |= {event.refund.payment_id} if event.refund else set()
        told |= {event.dispute.payment_id} if event.dispute else set()
        purchase = self.purchases.get(event.payment.order_id) if event.payment else None
        refund = next((r for r in self.refunds.values() if _is_about(event, r)), None)
        return Situation(
            mode="test",
            tenant_known=known is not None or purchase is not None or bool(told & set(self.payments)),
            subscription=known,
            plan=CATALOG.plans[known.plan_id] if known else None,
            purchase=purchase,
            payment_known=payment_id in self.payments,
            refund=refund,
            dispute=self.disputes.get(event.dispute.id) if event.dispute else None,
            trial_used=self.row.has_used_trial,
        )

    def _write(self, event: PaymentEvent, decision: Decision, intent: Intent | None, now: datetime) -> None:
        if decision.subscription is not None:
            if intent is not None:
                self.intents[intent.id] = replace(intent, provider_subscription_id=decision.subscription.id)
            self.known[decision.subscription.id] = decision.subscription
        if decision.payment is not None:
            assert decision.payment.id not in self.payments
            self.payments[decision.payment.id] = decision.payment
        if decision.purchase_paid and event.payment is not None:
            purchase = self.purchases[event.payment.order_id]
            self.purchases[event.payment.order_id] = replace(purchase, payment_id=event.payment.id)
        if decision.grant is not None and decision.grant.reference_id not in self.grants:
            self.grants[decision.grant.reference_id] = decision.grant
            self.owe(tasks.grant_credits(decision.grant))
        if decision.refund is not None:
            refund = decision.refund if decision.refund.id else replace(decision.refund, id=_own_id(event))
            self.refunds[refund.id] = refund
        if decision.dispute is not None:
            self.disputes[decision.dispute.id] = decision.dispute

    def _documents(self, decision: Decision, now: datetime) -> None:
        if decision.payment is not None:
            self._settle_claims(decision.payment.id)
        if decision.refund is not None:
            self._settle_claims(decision.refund.payment_id)
        if decision.dispute is not None:
            if decision.dispute.status == "won":
                self._restore(decision.dispute)
            self._settle_claims(decision.dispute.payment_id)

    def _settle_claims(self, payment_id: str) -> None:
        payment = self.payments.get(payment_id)
        if payment is None:
            return
        done = [r for r in self.refunds.values() if r.payment_id == payment_id and r.status == "processed"]
        gone = [
            Claim("refund", r.provider_refund_id or r.id, r.amount_paise) for r in done if r.kind == "refund"
        ]
        gone += [
            Claim("dispute", d.id, d.amount_deducted_paise)
            for d in self.disputes.values()
            if d.payment_id == payment_id and d.status == "lost"
        ]
        granted = self.granted_of(payment_id)
        taken = self._taken({grant.reference_id for grant in granted})
        for revocation in claims.revocations(payment.amount_paise, granted, gone, taken):
            self._revoke(revocation)
        self.credit_notes |= {r.provider_refund_id or r.id: r.amount_paise for r in done}

    def _restore(self, dispute: Dispute) -> None:
        for revocation in self.revocations.values():
            if revocation.cause_id == dispute.id and revocation.reference_id not in self.restored:
                self.restored.add(revocation.reference_id)
                self.owe(tasks.restore_grant(TENANT, revocation))

    def _taken(self, grant_references: set[str]) -> list[Revocation]:
        return [
            each
            for each in self.revocations.values()
            if each.grant_reference_id in grant_references and each.reference_id not in self.restored
        ]

    def _revoke(self, revocation: Revocation) -> None:
        first, times = revocation, 1
        while revocation.reference_id in self.revocations:
            if revocation.reference_id not in self.restored:
                return
            times += 1
            revocation = replace(first, reference_id=f"{first.reference_id}:{times}")
        self.revocations[revocation.reference_id] = revocation
        self.owe(tasks.revoke_grant(TENANT, revocation))

    def _give_back_unused(self) -> None:
        known = list(self.known.values())
        for payment in sorted(self.payments.values(), key=lambda p: p.id):
            old = self.known.get(payment.razorpay_subscription_id or "")
            taker = lifecycle.taker(old, known) if old is not None else None
            if old is None or taker is None or claims.was_forfeited(old, taker):
                continue
            if payment.period_start is None or payment.period_end is None:
                continue
            intent = self.intents[taker.intent_id]
            since = taker.started_at or taker.purchased_at
            if intent.quoted_at is not None and intent.quoted_payment_id == payment.id:
                since = intent.quoted_at
            refund_id = f"rfd_{taker.intent_id}_{payment.id}"
            paid = Paid(
                payment.id,
                payment.amount_paise,
                payment.period_start,
                payment.period_end,
                payment.received_at,
                self.given_back(payment.id),
            )
            amount = claims.unused_paise(paid, since) if paid.refundable(since) else 0
            if amount and refund_id not in self.refunds:
                self._prorate(payment, refund_id, amount, taker.intent_id, since)

    def _prorate(
        self, payment: Payment, refund_id: str, amount: int, change_id: str, since: datetime
    ) -> None:
        refund = Refund(refund_id, payment.id, None, "proration", amount, payment.currency, "pending")
        self.refunds[refund_id] = refund
        self.owe(tasks.refund_payment(TENANT, refund, notes={"change_id": change_id}))
        for grant in self.granted_of(payment.id):
            credits = claims.unused_credits(grant, self.taken_of(grant.reference_id), since)
            if credits:
                reference = f"proration:{change_id}:{grant.reference_id}"
                self._revoke(Revocation(reference, grant.reference_id, "proration", refund_id, credits))

    def state(self, at: datetime) -> dict[str, object]:
        """Everything that must not depend on the order, the repetitions and the delays of what was told.

        What a trial lent is over with it, and is not lent to who tells of it later. How several refunds share the
        last credit is decided by which came first; what they take together is not. What ended by itself is told to end
        by whom hears of that too late, which does no harm.
        """
        told_to_end = {
            key.split(":")[1] for key in self.tasks if key.startswith(("cancel:", "drop:", "end:"))
        }
        ended = {k.id for k in self.known.values() if k.ended}
        return {
            "row": self.row,
            "known": self.known,
            "purchases": self.purchases,
            "payments": {p.id: replace(p, received_at=at) for p in self.payments.values()},
            "granted": {
                reference: grant.credits
                for reference, grant in self.grants.items()
                if grant.kind != "trial" or (grant.expires_at is not None and grant.expires_at > at)
            },
            "net": {
                reference: grant.credits - self.taken_of(reference)
                for reference, grant in self.grants.items()
                if grant.kind != "trial"
            },
            "refunds": {
                r.provider_refund_id or r.id: (r.payment_id, r.kind, r.amount_paise, r.status)
                for r in self.refunds.values()
            },
            "disputes": {d.id: (d.phase, d.status, d.amount_deducted_paise) for d in self.disputes.values()},
            "credit notes": self.credit_notes,
            "charge no more": told_to_end | ended,
            "services": self.services,
        }


def _own_id(event: PaymentEvent) -> str:
    return f"told_{event.refund.id}" if event.refund else ""


def _is_about(event: PaymentEvent, refund: Refund) -> bool:
    told = event.refund
    if told is None:
        return False
    ours = (
        refund.provider_refund_id is None
        and refund.id == told.notes.get("refund_id")
        and (refund.payment_id, refund.amount_paise) == (told.payment_id, told.amount_paise)
    )
    return ours or refund.provider_refund_id == told.id
