"""Decides what an event means: what it teaches us, what it pays for, and why it is ignored.

A fact is keyed by what happened (the payment), never by the event that told of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from services.subscriptions.rules import fence
from services.subscriptions.rules.amounts import format_inr
from services.subscriptions.rules.catalog import Plan
from services.subscriptions.rules.events import PaymentEvent, ProviderPayment, ProviderSubscription
from services.subscriptions.rules.fence import KnownSubscription, Verdict
from services.subscriptions.rules.lifecycle import Subscription
from services.subscriptions.rules.periods import paid_period
from services.subscriptions.rules.purchases import CURRENCY, PackPurchase

Outcome = Literal["applied", "superseded", "ignored"]
PROVIDER = "razorpay"

EARLIER_MAX = 50
PAYMENT_FAILED = "payment.failed"
_ONE_TIME = frozenset({"payment.captured", "order.paid"})
_NEVER_FUNDING = frozenset(
    {"payment.authorized", PAYMENT_FAILED, "payment.pending", "invoice.paid", "invoice.partially_paid"}
)
_RECORDED_ONLY = ("settlement.", "payment.downtime.", "token.", "invoice.")


@dataclass(frozen=True)
class Grant:
    """Credits that a fact creates."""

    tenant_id: str
    reference_id: str
    kind: str
    bucket: Literal["subscription", "permanent"]
    credits: int
    expires_at: datetime | None
    payment_id: str | None
    description: str
    razorpay_subscription_id: str | None = None
    # The time that they were paid for; None: none.
    period_start: datetime | None = None
    period_end: datetime | None = None


@dataclass(frozen=True)
class Payment:
    """What a customer paid, for our mirror."""

    id: str
    tenant_id: str
    purpose: Literal["plan_cycle", "credit_pack"]
    razorpay_subscription_id: str | None
    order_id: str
    invoice_id: str
    purchase_id: str | None
    plan_id: str | None
    billing_cycle: str | None
    amount_paise: int
    currency: str
    method: str
    period_start: datetime | None
    period_end: datetime | None
    received_at: datetime
    # Credits of each month, when the period's credits do not come at once.
    drip_credits: int | None = None


@dataclass(frozen=True)
class Refund:
    """Money given back, as far as we know of it."""

    id: str
    payment_id: str
    provider_refund_id: str | None
    kind: Literal["refund", "proration"]
    amount_paise: int
    currency: str
    status: str


@dataclass(frozen=True)
class Dispute:
    """Money asked back through the customer's bank, as far as we know of it."""

    id: str
    payment_id: str
    phase: str
    status: str
    amount_paise: int
    amount_deducted_paise: int
    currency: str
    observed_at: datetime


@dataclass(frozen=True)
class Finding:
    """Something about money that a person must look at."""

    check_type: str
    severity: Literal["warning", "critical"]
    observed: Mapping[str, Any]

    def beside(self, open_one: Mapping[str, Any]) -> "Finding":
        """This finding with what an open one of its kind says of other payments, which it would else cover up."""
        earlier = [{name: value for name, value in open_one.items() if name != "earlier"}]
        earlier += open_one.get("earlier", [])
        others = [each for each in earlier if each.get("paymentId") != self.observed.get("paymentId")]
        return replace(self, observed={**self.observed, "earlier": others[:EARLIER_MAX]}) if others else self


@dataclass(frozen=True)
class Situation:
    """What we hold that an event may be about, read under the tenant's lock."""

    mode: str
    tenant_known: bool = False
    subscription: KnownSubscription | None = None
    plan: Plan | None = None
    purchase: PackPurchase | None = None
    # The tenant has had the free days that it may have once.
    trial_used: bool = False
    # The payment of the event is in our mirror already, by whichever event came first.
    payment_known: bool = False
    # What we hold of the refund or dispute of the event.
    refund: Refund | None = None
    dispute: Dispute | None = None


@dataclass(frozen=True)
class Decision:
    """What an event means; `subscription` is set when there is something new to store."""

    outcome: Outcome
    reason: str
    subscription: KnownSubscription | None = None
    payment: Payment | None = None
    grant: Grant | None = None
    purchase_paid: bool = False
    # What the payment bought, as its invoice says it.
    bought: str = ""
    refund: Refund | None = None
    dispute: Dispute | None = None
    finding: Finding | None = None
    # The provider must be asked: the event leaves open what is true.
    fetch: bool = False


def decide(event: PaymentEvent, situation: Situation) -> Decision:
    """The one place that says what each kind of event does."""
    if event.provider != PROVIDER:
        return _ignored("unknown_provider")
    if event.mode != situation.mode:
        return _ignored("other_mode")
    match event.event_type:
        case "subscription.charged":
            return _charge(event, situation)
        case word if word.startswith("subscription."):
            return _snapshot(event, situation)
        case word if word in _ONE_TIME:
            return _one_time_payment(event, situation)
        case word if word in _NEVER_FUNDING:
            return _ignored("not_a_funding_fact")
        case word if word.startswith("refund."):
            return _refund(event, situation)
        case word if word.startswith("payment.dispute."):
            return _dispute(event, situation)
        case word if word.startswith(_RECORDED_ONLY):
            return _ignored("recorded_only")
        case _:
            return _ignored("unknown_event")


def _ignored(reason: str, finding: Finding | None = None) -> Decision:
    return Decision("ignored", reason, finding=finding)


def _snapshot(event: PaymentEvent, situation: Situation) -> Decision:
    if event.subscription is None:
        return _ignored("no_subscription")
    if situation.subscription is None:
        return _ignored("unknown_subscription" if situation.tenant_known else "unknown_tenant")
    merged, verdict = fence.merge(situation.subscription, event.subscription, event.observed_at)
    fetch = fence.ambiguous(situation.subscription, event.subscription, event.observed_at)
    if verdict is Verdict.NEWS:
        # Several may have been begun, and authorised, before we heard of the first.
        plan = None if situation.trial_used else situation.plan
        trial = _trial_grant(merged, plan, event)
        reason = "trial_began" if trial else "subscription_updated"
        return Decision("applied", reason, merged, grant=trial, fetch=fetch)
    outcome: Outcome = "superseded" if verdict is Verdict.OLDER else "ignored"
    return Decision(outcome, "older_snapshot" if outcome == "superseded" else "nothing_new", fetch=fetch)


def _trial_grant(known: KnownSubscription, plan: Plan | None, event: PaymentEvent) -> Grant | None:
    """A mandate with a later first charge is a trial; its credits end with it."""
    ends_at = known.trial_ends_at
    # Not by the status: whoever hears of its end first still owes what it began with.
    if not known.authorised or plan is None or ends_at is None or ends_at <= event.heard_at:
        return None
    if plan.trial_credits == 0:
        return None
    return Grant(
        tenant_id=known.tenant_id,
        reference_id=f"trial:{known.id}",
        kind="trial",
        bucket="subscription",
        credits=plan.trial_credits,
        expires_at=ends_at,
        payment_id=None,
        description=f"{plan.name}, trial",
        razorpay_subscription_id=known.id,
        period_start=event.received_at,
        period_end=ends_at,
    )


def _charge(event: PaymentEvent, situation: Situation) -> Decision:
    learned = _snapshot(event, situation)
    known, plan = situation.subscription, situation.plan
    if known is None or plan is None or event.subscription is None:
        return _charge_without_owner(event, situation, learned)
    if event.payment is None or not event.payment.captured:
        # A charge without its payment: the provider's invoices say which one it was.
        return replace(learned, outcome="applied", reason="payment_missing", fetch=True)
    if situation.payment_known:
        return replace(learned, reason="already_funded")
    if event.payment.amount_paise <= 0 or event.payment.currency != CURRENCY:
        observed = {
            "paymentId": event.payment.id,
            "razorpaySubscriptionId": known.id,
            "paid": f"{event.payment.amount_paise} {event.payment.currency}",
        }
        finding = Finding("charge_amount_mismatch", "critical", observed)
        return replace(learned, reason="amount_mismatch", finding=finding)
    return _fund_cycle(event, event.subscription, event.payment, known, plan, learned)


def _charge_without_owner(event: PaymentEvent, situation: Situation, learned: Decision) -> Decision:
    if not situation.tenant_known:
        return learned
    observed = {
        "razorpaySubscriptionId": event.subscription.id if event.subscription else "",
        "paymentId": event.payment.id if event.payment else "",
    }
    return replace(learned, finding=Finding("charge_without_subscription", "critical", observed))


def _fund_cycle(
    event: PaymentEvent,
    snapshot: ProviderSubscription,
    payment: ProviderPayment,
    known: KnownSubscription,
    plan: Plan,
    learned: Decision,
) -> Decision:
    start, end = snapshot.current_start, snapshot.current_end
    if event.invoice is not None and event.invoice.billing_end is not None:
        start, end = event.invoice.billing_start, event.invoice.billing_end
        # A subscription that has ended before anybody told us of it says no more until when it was paid.
        learned = _learn_paid(learned, known, event.invoice.billing_end)
    period = paid_period(start, end, known.billing_cycle, event.heard_at)
    reference = f"{PROVIDER}:{payment.id}"
    # A dripping year brings nothing now: GrantDueCredits grants its months as `<reference>:m<k>`.
    drips = known.billing_cycle == "yearly" and plan.credit_cadence == "monthly"
    credits = 0 if drips else plan.credits(known.billing_cycle)
    mirrored = _mirror(event, payment, known.tenant_id, known=known, start=period.start, end=period.end)
    grant = Grant(
        tenant_id=known.tenant_id,
        reference_id=reference,
        kind="plan.cycle",
        bucket="subscription",
        credits=credits,
        expires_at=period.credits_expire_at,
        payment_id=payment.id,
        description=f"{plan.name}, {known.billing_cycle}, paid {format_inr(payment.amount_paise)}",
        razorpay_subscription_id=known.id,
        period_start=period.start,
        period_end=period.end,
    )
    late = Finding(
        "late_charge",
        "warning",
        {"paymentId": payment.id, "razorpaySubscriptionId": known.id, "periodEnd": period.end.isoformat()},
    )
    return replace(
        learned,
        outcome="applied",
        reason="granted" if credits else "drips_monthly",
        payment=replace(mirrored, drip_credits=(plan.base_credits or None) if drips else None),
        bought=f"{plan.name} plan, {known.billing_cycle}",
        grant=grant if credits else None,
        finding=late if period.late else learned.finding,
    )


def _learn_paid(learned: Decision, known: KnownSubscription, until: datetime) -> Decision:
    paid = fence.paid_for(learned.subscription or known, until)
    return learned if paid == known else replace(learned, subscription=paid)


def _one_time_payment(event: PaymentEvent, situation: Situation) -> Decision:
    payment, purchase = event.payment, situation.purchase
    if payment is None:
        return _ignored("no_payment")
    if payment.invoice_id:
        return _ignored("not_a_funding_fact")
    if purchase is None:
        return _ignored("unknown_order")
    if not payment.captured:
        return _ignored("not_captured")
    observed = {"paymentId": payment.id, "purchaseId": purchase.id}
    if (payment.amount_paise, payment.currency) != (purchase.amount_paise, purchase.currency):
        observed |= {"paid": f"{payment.amount_paise} {payment.currency}"}
        observed |= {"asked": f"{purchase.amount_paise} {purchase.currency}"}
        return _ignored("amount_mismatch", Finding("purchase_amount_mismatch", "critical", observed))
    if purchase.payment_id == payment.id or situation.payment_known:
        return _ignored("already_funded")
    if purchase.payment_id is not None:
        return _ignored("purchase_already_paid", Finding("purchase_paid_twice", "critical", observed))
    return Decision(
        "applied",
        "granted",
        payment=_mirror(event, payment, purchase.tenant_id, purchase=purchase),
        purchase_paid=True,
        bought=f"Credit pack {purchase.pack_id}, {purchase.credits} credits",
        grant=Grant(
            tenant_id=purchase.tenant_id,
            reference_id=f"{PROVIDER}:{payment.id}",
            kind="credit_pack",
            bucket="permanent",
            credits=purchase.credits,
            expires_at=None,
            payment_id=payment.id,
            description=f"Credit pack {purchase.pack_id}, paid {format_inr(payment.amount_paise)}",
        ),
    )


def slipped_in(row: Subscription, decision: Decision) -> Finding | None:
    """A charge for time after an end that the customer had scheduled: the provider was not told in time."""
    paid, ends_at = decision.payment, row.ends_at
    if paid is None or paid.period_start is None or ends_at is None or not row.cancel_at_period_end:
        return None
    if paid.razorpay_subscription_id != row.razorpay_subscription_id or paid.period_start < ends_at:
        return None
    if row.pending_since is not None and row.pending_since >= paid.period_start:
        return None  # heard of late: the wish came after the charge
    observed = {"paymentId": paid.id, "razorpaySubscriptionId": row.razorpay_subscription_id}
    return Finding("charged_after_scheduled_end", "critical", observed | {"endedAt": ends_at.isoformat()})


_REFUND_RANK = ("pending", "failed", "processed")
_PHASE_RANK = ("fraud", "retrieval", "chargeback", "pre_arbitration", "arbitration")
_DISPUTE_RANK = ("open", "under_review", "closed", "lost", "won")


def _refund(event: PaymentEvent, situation: Situation) -> Decision:
    told, known = event.refund, situation.refund
    if told is None or told.amount_paise <= 0:
        return _ignored("no_refund")
    if told.status not in _REFUND_RANK:
        return _ignored("unknown_status")
    answered = known is not None and known.provider_refund_id is not None
    if known and answered and _REFUND_RANK.index(told.status) <= _REFUND_RANK.index(known.status):
        return _ignored("nothing_new")
    kind: Literal["refund", "proration"] = "proration" if told.notes.get("kind") == "proration" else "refund"
    refund = Refund(
        id=known.id if known else "",
        payment_id=told.payment_id,
        provider_refund_id=told.id,
        kind=known.kind if known else kind,
        amount_paise=told.amount_paise,
        currency=told.currency,
        status=told.status,
    )
    failed = Finding(
        "refund_failed", "critical", {"refundId": told.id, "paymentId": told.payment_id, "kind": refund.kind}
    )
    if not situation.tenant_known:  # kept, in case its payment is still to come
        return Decision("ignored", "unknown_payment", refund=refund)
    return Decision(
        "applied", f"refund_{told.status}", refund=refund, finding=failed if told.status == "failed" else None
    )


def _dispute(event: PaymentEvent, situation: Situation) -> Decision:
    told, known = event.dispute, situation.dispute
    if told is None:
        return _ignored("no_dispute")
    if told.status not in _DISPUTE_RANK:
        return _ignored("unknown_status")
    dispute = Dispute(
        id=told.id,
        payment_id=told.payment_id,
        phase=told.phase,
        status=told.status,
        amount_paise=told.amount_paise,
        amount_deducted_paise=told.amount_deducted_paise,
        currency=told.currency,
        observed_at=event.observed_at,
    )
    if known is not None and _dispute_key(dispute) <= _dispute_key(known):
        return Decision("superseded", "older_snapshot")
    if not situation.tenant_known:
        return Decision("ignored", "unknown_payment", dispute=dispute)
    lost = Finding(
        "dispute_lost",
        "warning",
        {
            "disputeId": told.id,
            "paymentId": told.payment_id,
            "amountDeductedPaise": told.amount_deducted_paise,
        },
    )
    return Decision(
        "applied", f"dispute_{told.status}", dispute=dispute, finding=lost if told.status == "lost" else None
    )


def _dispute_key(dispute: Dispute) -> tuple[int, int, int]:
    """A later phase beats an earlier one, then the further status: whatever the order of arrival."""
    phase = _PHASE_RANK.index(dispute.phase) if dispute.phase in _PHASE_RANK else -1
    return phase, _DISPUTE_RANK.index(dispute.status), dispute.amount_deducted_paise


def _mirror(
    event: PaymentEvent,
    payment: ProviderPayment,
    tenant_id: str,
    *,
    known: KnownSubscription | None = None,
    purchase: PackPurchase | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
) -> Payment:
    return Payment(
        id=payment.id,
        tenant_id=tenant_id,
        purpose="plan_cycle" if known else "credit_pack",
        razorpay_subscription_id=known.id if known else None,
        order_id=payment.order_id,
        invoice_id=payment.invoice_id,
        purchase_id=purchase.id if purchase else None,
        plan_id=known.plan_id if known else None,
        billing_cycle=known.billing_cycle if known else None,
        amount_paise=payment.amount_paise,
        currency=payment.currency,
        method=payment.method,
        period_start=start,
        period_end=end,
        received_at=event.received_at,
    )
