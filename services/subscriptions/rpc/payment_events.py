"""PaymentEventsService."""

from billing.subscriptions.v1 import payment_events_pb2 as pb
from billing.subscriptions.v1 import payment_events_pb2_grpc as pb_grpc

from services.subscriptions.actions import payment_events as actions
from services.subscriptions.rpc.messages import Context, moment
from services.subscriptions.rpc.room import Desk
from services.subscriptions.rules.events import (
    PaymentEvent,
    ProviderDispute,
    ProviderInvoice,
    ProviderOrder,
    ProviderPayment,
    ProviderRefund,
    ProviderSubscription,
)
from shared.clock import Clock

_OUTCOMES = {
    "applied": pb.PAYMENT_EVENT_OUTCOME_APPLIED,
    "duplicate": pb.PAYMENT_EVENT_OUTCOME_DUPLICATE,
    "superseded": pb.PAYMENT_EVENT_OUTCOME_SUPERSEDED,
    "ignored": pb.PAYMENT_EVENT_OUTCOME_IGNORED,
}


class PaymentEventsService(Desk, pb_grpc.PaymentEventsServiceServicer):
    """What the webhooks room reports."""

    async def ApplyPaymentEvent(
        self, request: pb.ApplyPaymentEventRequest, context: Context
    ) -> pb.ApplyPaymentEventResponse:
        applied = await actions.apply_payment_event(
            self._room.engine,
            event_from(request.event, self._room.clock),
            idempotency_key=request.idempotency_key,
            mode=self._room.mode,
            now=self._room.clock(),
            policy=self._room.policy,
        )
        if applied.tenant_id is not None and applied.owes:
            await self._room.reconciler.attempt(applied.tenant_id)
        return pb.ApplyPaymentEventResponse(
            outcome=_OUTCOMES[applied.outcome], reason=applied.reason, tenant_id=applied.tenant_id or ""
        )


def event_from(event: pb.PaymentEvent, clock: Clock) -> PaymentEvent:
    """The event in plain values; an entity that was not there stays absent."""
    return PaymentEvent(
        provider=event.provider,
        account_id=event.account_id,
        mode=event.mode,
        body_sha256=event.body_sha256,
        event_id=event.event_id,
        event_type=event.event_type,
        occurred_at=moment(event, "occurred_at"),
        received_at=moment(event, "received_at") or clock(),
        subscription=_subscription(event.subscription) if event.HasField("subscription") else None,
        payment=_payment(event.payment) if event.HasField("payment") else None,
        order=_order(event.order) if event.HasField("order") else None,
        invoice=_invoice(event.invoice) if event.HasField("invoice") else None,
        refund=_refund(event.refund) if event.HasField("refund") else None,
        dispute=_dispute(event.dispute) if event.HasField("dispute") else None,
    )


def _subscription(of: pb.ProviderSubscription) -> ProviderSubscription:
    return ProviderSubscription(
        id=of.id,
        provider_plan_id=of.provider_plan_id,
        customer_id=of.customer_id,
        status=of.status,
        current_start=moment(of, "current_start"),
        current_end=moment(of, "current_end"),
        ended_at=moment(of, "ended_at"),
        start_at=moment(of, "start_at"),
        charge_at=moment(of, "charge_at"),
        paid_count=of.paid_count,
        total_count=of.total_count,
        auth_attempts=of.auth_attempts,
        payment_method=of.payment_method,
        notes=dict(of.notes),
    )


def _payment(of: pb.ProviderPayment) -> ProviderPayment:
    return ProviderPayment(
        id=of.id,
        amount_paise=of.amount,
        currency=of.currency,
        status=of.status,
        captured=of.captured,
        amount_refunded_paise=of.amount_refunded,
        order_id=of.order_id,
        invoice_id=of.invoice_id,
        method=of.method,
        error_code=of.error_code,
        error_reason=of.error_reason,
    )


def _order(of: pb.ProviderOrder) -> ProviderOrder:
    return ProviderOrder(
        id=of.id, amount_paise=of.amount, currency=of.currency, receipt=of.receipt, status=of.status
    )


def _invoice(of: pb.ProviderInvoice) -> ProviderInvoice:
    return ProviderInvoice(
        id=of.id,
        subscription_id=of.subscription_id,
        payment_id=of.payment_id,
        status=of.status,
        billing_start=moment(of, "billing_start"),
        billing_end=moment(of, "billing_end"),
    )


def _refund(of: pb.ProviderRefund) -> ProviderRefund:
    return ProviderRefund(
        id=of.id,
        payment_id=of.payment_id,
        amount_paise=of.amount,
        currency=of.currency,
        status=of.status,
        notes=dict(of.notes),
    )


def _dispute(of: pb.ProviderDispute) -> ProviderDispute:
    return ProviderDispute(
        id=of.id,
        payment_id=of.payment_id,
        amount_paise=of.amount,
        amount_deducted_paise=of.amount_deducted,
        currency=of.currency,
        status=of.status,
        phase=of.phase,
    )
