"""SubscriptionsMaintenanceService: add-ons that came due."""

from billing.maintenance.v1 import alert_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb

from services.subscriptions.actions.renewals import Refused, Renewer
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk


class Renewals(Desk):
    """RenewAddons."""

    async def RenewAddons(self, request: pb.RenewAddonsRequest, context: Context) -> pb.RenewAddonsResponse:
        room = self._room
        done = await Renewer(room.engine, room.ledger, room.reconciler, room.clock).run(
            dry_run=request.dry_run
        )
        return pb.RenewAddonsResponse(
            renewed=done.counts["renewed"],
            paused=done.counts["paused"],
            ended=done.counts["ended"],
            failed=done.counts["failed"],
            alerts=[_refused(refused) for refused in done.refused],
        )


def _refused(refused: Refused) -> alert_pb2.Alert:
    row = refused.row
    return alert_pb2.Alert(
        key=f"subscriptions.addon_not_charged:{row.id}",
        severity=alert_pb2.ALERT_SEVERITY_WARNING,
        title=f"The ledger would not charge add-on {row.addon_id}: {refused.message}",
        tenant_id=row.tenant_id,
        evidence={
            "tenant_addon_id": row.id,
            "addon": row.addon_id,
            "status": row.status,
            "period": str(row.period + 1),
            "reason": refused.reason,
        },
    )
