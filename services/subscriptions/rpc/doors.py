"""The room's services and who may call each."""

from billing.subscriptions.v1 import (
    catalog_pb2_grpc,
    payment_events_pb2_grpc,
    subscriptions_admin_pb2_grpc,
    subscriptions_maintenance_pb2_grpc,
    subscriptions_pb2_grpc,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from services.subscriptions.actions.reconciliation import Reconciler
from services.subscriptions.clients.ledger import Ledger
from services.subscriptions.clients.razorpay import Razorpay
from services.subscriptions.rpc.admin import SubscriptionsAdminService
from services.subscriptions.rpc.catalog import CatalogService
from services.subscriptions.rpc.maintenance import SubscriptionsMaintenanceService
from services.subscriptions.rpc.payment_events import PaymentEventsService
from services.subscriptions.rpc.subscriptions import SubscriptionsService
from shared.clock import Clock
from shared.rpc.server import Audience, Door

PACKAGE = "billing.subscriptions.v1"


def doors(
    engine: AsyncEngine,
    ledger: Ledger,
    razorpay: Razorpay,
    reconciler: Reconciler,
    *,
    mode: str,
    clock: Clock,
) -> list[Door]:
    """One service for each audience, wired to the same room."""
    product = SubscriptionsService(
        engine, ledger=ledger, razorpay=razorpay, reconciler=reconciler, mode=mode, clock=clock
    )
    return [
        Door(
            f"{PACKAGE}.CatalogService",
            catalog_pb2_grpc.add_CatalogServiceServicer_to_server,
            CatalogService(engine),
            Audience.PRODUCT,
        ),
        Door(
            f"{PACKAGE}.SubscriptionsService",
            subscriptions_pb2_grpc.add_SubscriptionsServiceServicer_to_server,
            product,
            Audience.PRODUCT,
        ),
        Door(
            f"{PACKAGE}.PaymentEventsService",
            payment_events_pb2_grpc.add_PaymentEventsServiceServicer_to_server,
            PaymentEventsService(engine, reconciler=reconciler, mode=mode, clock=clock),
            Audience.ROOM,
        ),
        Door(
            f"{PACKAGE}.SubscriptionsAdminService",
            subscriptions_admin_pb2_grpc.add_SubscriptionsAdminServiceServicer_to_server,
            SubscriptionsAdminService(engine, reconciler=reconciler, clock=clock),
            Audience.OPERATOR,
        ),
        Door(
            f"{PACKAGE}.SubscriptionsMaintenanceService",
            subscriptions_maintenance_pb2_grpc.add_SubscriptionsMaintenanceServiceServicer_to_server,
            SubscriptionsMaintenanceService(engine, reconciler=reconciler, clock=clock),
            Audience.ROOM,
        ),
    ]
