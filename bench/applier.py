"""A cheap neighbour: `python -m bench.applier ADDRESS` answers ApplyPaymentEvent at once, behind a room's own stack."""

from __future__ import annotations

import sys
from typing import Any

import uvloop
from billing.subscriptions.v1 import payment_events_pb2 as pb
from billing.subscriptions.v1 import payment_events_pb2_grpc as pb_grpc

from shared import config, logs
from shared.config import RoomSettings
from shared.rpc.server import Audience, Door, serve


class Applier(pb_grpc.PaymentEventsServiceServicer):
    """Subscriptions that believe everything and do nothing."""

    async def ApplyPaymentEvent(
        self, request: pb.ApplyPaymentEventRequest, context: Any
    ) -> pb.ApplyPaymentEventResponse:
        return pb.ApplyPaymentEventResponse(outcome=pb.PAYMENT_EVENT_OUTCOME_APPLIED, reason="nothing")


if __name__ == "__main__":
    settings = config.load(RoomSettings)
    logs.configure("applier", settings.log_level)
    door = Door(
        "billing.subscriptions.v1.PaymentEventsService",
        pb_grpc.add_PaymentEventsServiceServicer_to_server,
        Applier(),
        Audience.ROOM,
    )
    uvloop.run(serve(room="subscriptions", listen=sys.argv[1], settings=settings, doors=[door]))
