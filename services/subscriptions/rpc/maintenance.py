"""SubscriptionsMaintenanceService: one desk for each kind of work that time makes due."""

from billing.subscriptions.v1 import subscriptions_maintenance_pb2_grpc as pb_grpc

from services.subscriptions.rpc.audit import Audits
from services.subscriptions.rpc.due import DueDates
from services.subscriptions.rpc.health import Health
from services.subscriptions.rpc.renewals import Renewals
from services.subscriptions.rpc.sync import Syncs
from services.subscriptions.rpc.upkeep import Upkeep


class SubscriptionsMaintenanceService(
    Audits, DueDates, Health, Renewals, Syncs, Upkeep, pb_grpc.SubscriptionsMaintenanceServiceServicer
):
    """What time makes due."""
