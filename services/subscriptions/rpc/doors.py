"""The room's services and who may call each."""

from billing.subscriptions.v1 import (
    catalog_pb2_grpc,
    payment_events_pb2_grpc,
    subscriptions_admin_pb2_grpc,
    subscriptions_maintenance_pb2_grpc,
    subscriptions_pb2_grpc,
)

from services.subscriptions.rpc.admin import SubscriptionsAdminService
from services.subscriptions.rpc.catalog import CatalogService
from services.subscriptions.rpc.maintenance import SubscriptionsMaintenanceService
from services.subscriptions.rpc.payment_events import PaymentEventsService
from services.subscriptions.rpc.room import Room
from services.subscriptions.rpc.subscriptions import SubscriptionsService
from shared.rpc.server import Audience, Door

PACKAGE = "billing.subscriptions.v1"


def doors(room: Room) -> list[Door]:
    """One service for each audience, opening onto the same room."""
    return [
        Door(
            f"{PACKAGE}.CatalogService",
            catalog_pb2_grpc.add_CatalogServiceServicer_to_server,
            CatalogService(room.engine),
            Audience.PRODUCT,
        ),
        Door(
            f"{PACKAGE}.SubscriptionsService",
            subscriptions_pb2_grpc.add_SubscriptionsServiceServicer_to_server,
            SubscriptionsService(room),
            Audience.PRODUCT,
        ),
        Door(
            f"{PACKAGE}.PaymentEventsService",
            payment_events_pb2_grpc.add_PaymentEventsServiceServicer_to_server,
            PaymentEventsService(room),
            Audience.ROOM,
        ),
        Door(
            f"{PACKAGE}.SubscriptionsAdminService",
            subscriptions_admin_pb2_grpc.add_SubscriptionsAdminServiceServicer_to_server,
            SubscriptionsAdminService(room),
            Audience.OPERATOR,
        ),
        Door(
            f"{PACKAGE}.SubscriptionsMaintenanceService",
            subscriptions_maintenance_pb2_grpc.add_SubscriptionsMaintenanceServiceServicer_to_server,
            SubscriptionsMaintenanceService(room),
            Audience.ROOM,
        ),
    ]
