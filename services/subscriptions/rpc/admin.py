"""SubscriptionsAdminService: one desk for each kind of request."""

from billing.subscriptions.v1 import subscriptions_admin_pb2_grpc as pb_grpc

from services.subscriptions.rpc.catalog_admin import CatalogAdmin
from services.subscriptions.rpc.diagnosis import Diagnoses
from services.subscriptions.rpc.entitlements import Entitlements
from services.subscriptions.rpc.findings import Findings
from services.subscriptions.rpc.notices import Notices
from services.subscriptions.rpc.overrides import Overrides
from services.subscriptions.rpc.records import Records
from services.subscriptions.rpc.refunds import Refunds
from services.subscriptions.rpc.tasks import Tasks


class SubscriptionsAdminService(
    CatalogAdmin,
    Diagnoses,
    Entitlements,
    Findings,
    Notices,
    Overrides,
    Records,
    Refunds,
    Tasks,
    pb_grpc.SubscriptionsAdminServiceServicer,
):
    """What operators may see and mend."""
