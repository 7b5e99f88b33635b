"""SubscriptionsMaintenanceService: what the provider holds and we do not."""

from billing.maintenance.v1 import alert_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb

from services.subscriptions.actions.reconciliation import PATIENCE_SECONDS
from services.subscriptions.actions.sync import sync_with_provider
from services.subscriptions.rpc.audit import SEVERITIES
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk
from shared.rpc.context import DEFAULT_TIMEOUT_SECONDS, remaining_seconds

# The tasks of so many tenants are attempted within the call, those of the others by the reconcile job.
ATTEMPTED_AT_ONCE = 20


class Syncs(Desk):
    """SyncWithProvider."""

    async def SyncWithProvider(
        self, request: pb.SyncWithProviderRequest, context: Context
    ) -> pb.SyncWithProviderResponse:
        synced = await sync_with_provider(
            self._room.engine,
            self._room.razorpay,
            tenant_id=request.tenant_id or None,
            idempotency_key=request.idempotency_key,
            mode=self._room.mode,
            clock=self._room.clock,
            policy=self._room.policy,
            dry_run=request.dry_run,
            time_left_seconds=remaining_seconds() or DEFAULT_TIMEOUT_SECONDS,
        )
        for tenant_id in synced.touched[:ATTEMPTED_AT_ONCE]:
            if (remaining_seconds() or DEFAULT_TIMEOUT_SECONDS) < 2 * PATIENCE_SECONDS:
                break
            await self._room.reconciler.attempt(tenant_id)
        return pb.SyncWithProviderResponse(
            compared=synced.compared,
            differences=synced.differences,
            tasks_queued=synced.tasks_queued,
            orphans=synced.orphans,
            alerts=[
                alert_pb2.Alert(
                    key=notice.key,
                    severity=SEVERITIES[notice.severity],
                    title=notice.title,
                    tenant_id=notice.tenant_id,
                    evidence=notice.evidence,
                )
                for notice in synced.notices
            ],
        )
