"""SubscriptionsService: one desk for each kind of request."""

from billing.subscriptions.v1 import subscriptions_pb2_grpc as pb_grpc

from services.subscriptions.rpc.addons import Addons
from services.subscriptions.rpc.changes import Changes
from services.subscriptions.rpc.invoices import Invoices
from services.subscriptions.rpc.purchases import Purchases
from services.subscriptions.rpc.tenants import Tenants


class SubscriptionsService(
    Addons, Changes, Invoices, Tenants, Purchases, pb_grpc.SubscriptionsServiceServicer
):
    """What the product may ask for a tenant."""
