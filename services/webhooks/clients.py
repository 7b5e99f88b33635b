"""The door out: hands events to the subscriptions room."""

from datetime import datetime
from typing import Any

import grpc
from billing.subscriptions.v1 import payment_events_pb2 as pb
from billing.subscriptions.v1 import payment_events_pb2_grpc as pb_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from services.webhooks.rules.delivery import Claimed, Decision, Outcome, idempotency_key
from services.webhooks.rules.events import Facts
from shared.database import assert_no_transaction
from shared.errors import Internal

_OUTCOMES: dict[int, Outcome] = {
    pb.PAYMENT_EVENT_OUTCOME_APPLIED: "applied",
    pb.PAYMENT_EVENT_OUTCOME_DUPLICATE: "duplicate",
    pb.PAYMENT_EVENT_OUTCOME_SUPERSEDED: "superseded",
    pb.PAYMENT_EVENT_OUTCOME_IGNORED: "ignored",
}


class PaymentEvents:
    """Subscriptions' PaymentEventsService."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = pb_grpc.PaymentEventsServiceStub(channel)

    async def apply(self, event: Claimed, facts: Facts, *, timeout_seconds: float) -> Decision:
        """What subscriptions made of the event. Asking again with the same event changes nothing."""
        assert_no_transaction("ApplyPaymentEvent")
        request = pb.ApplyPaymentEventRequest(
            idempotency_key=idempotency_key(event), event=_to_proto(event, facts)
        )
        answer = await self._stub.ApplyPaymentEvent(request, timeout=timeout_seconds)
        if answer.outcome not in _OUTCOMES:
            raise Internal("subscriptions answered an outcome that this room does not know")
        return Decision(_OUTCOMES[answer.outcome], answer.reason, answer.tenant_id or None)


def _to_proto(event: Claimed, facts: Facts) -> pb.PaymentEvent:
    return pb.PaymentEvent(
        provider=event.provider,
        account_id=facts.account_id,
        mode=event.mode,
        body_sha256=event.body_sha256,
        event_id=event.event_id or "",
        event_type=facts.event_type,
        occurred_at=_stamp(facts.occurred_at),
        received_at=_stamp(event.received_at),
        subscription=_entity(pb.ProviderSubscription, facts.subscription),
        payment=_entity(pb.ProviderPayment, facts.payment),
        order=_entity(pb.ProviderOrder, facts.order),
        invoice=_entity(pb.ProviderInvoice, facts.invoice),
        refund=_entity(pb.ProviderRefund, facts.refund),
        dispute=_entity(pb.ProviderDispute, facts.dispute),
    )


def _stamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def _entity(message: Any, entity: object | None) -> Any:
    """The rules' dataclasses carry the contract's field names, so one loop copies any of them."""
    if entity is None:
        return None
    fields: dict[str, str | int | bool | datetime | dict[str, str]] = {
        name: value for name, value in vars(entity).items() if value is not None
    }
    return message(**fields)
