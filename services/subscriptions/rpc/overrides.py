"""SubscriptionsAdminService: limits set for one tenant."""

from billing.subscriptions.v1 import subscriptions_admin_pb2 as pb

from services.subscriptions.actions import overrides
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk
from shared.errors import InvalidArgument


class Overrides(Desk):
    """SetOverride and RemoveOverride."""

    async def SetOverride(self, request: pb.SetOverrideRequest, context: Context) -> pb.SetOverrideResponse:
        wish = overrides.Wish(
            service=request.service_code,
            key=request.limit.key,
            value=_bound(request),
            expires_at=messages.moment(request, "expires_at"),
            actor=request.actor,
            reason=request.reason,
        )
        done = await overrides.set_override(
            self._room.engine,
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            wish=wish,
            now=self._room.clock(),
        )
        await self._room.reconciler.attempt(request.tenant_id)
        return pb.SetOverrideResponse(
            # A repeat asks for the same, so the answer is the same.
            override=pb.Override(
                override_id=done.override_id,
                service_code=wish.service,
                limit=messages.limit(wish.key, wish.value),
                expires_at=messages.timestamp(wish.expires_at),
                reason=wish.reason,
                actor=wish.actor,
            ),
            entitlements_version=done.version,
            replayed=done.replayed,
        )

    async def RemoveOverride(
        self, request: pb.RemoveOverrideRequest, context: Context
    ) -> pb.RemoveOverrideResponse:
        done = await overrides.remove_override(
            self._room.engine,
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            override_id=request.override_id,
            actor=request.actor,
            reason=request.reason,
            now=self._room.clock(),
        )
        await self._room.reconciler.attempt(request.tenant_id)
        return pb.RemoveOverrideResponse(entitlements_version=done.version, replayed=done.replayed)


def _bound(request: pb.SetOverrideRequest) -> int | None:
    match request.limit.WhichOneof("bound"):
        case "value":
            return request.limit.value
        case "unlimited" if request.limit.unlimited:
            return None
    raise InvalidArgument(
        "this limit cannot be set", violations=[("limit", "say a value, or unlimited: true")]
    )
