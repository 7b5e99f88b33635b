"""SubscriptionsAdminService: one desk for each kind of request."""

from billing.subscriptions.v1 import subscriptions_admin_pb2_grpc as pb_grpc

from services.subscriptions.rpc.entitlements import Entitlements
from services.subscriptions.rpc.notices import Notices
from services.subscriptions.rpc.overrides import Overrides
from services.subscriptions.rpc.refunds import Refunds
from services.subscriptions.rpc.tasks import Tasks


class SubscriptionsAdminService(
    Entitlements, Notices, Overrides, Refunds, Tasks, pb_grpc.SubscriptionsAdminServiceServicer
):
    """What operators may see and mend."""
