"""SubscriptionsMaintenanceService: add-ons that came due."""

from billing.maintenance.v1 import alert_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb

from services.subscriptions.actions.renewals import Renewer, Trouble
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
            alerts=[_alert(trouble) for trouble in done.troubles],
        )


def _alert(trouble: Trouble) -> alert_pb2.Alert:
    return alert_pb2.Alert(
        key=f"subscriptions.addon_not_charged:{trouble.subject}",
        severity=alert_pb2.ALERT_SEVERITY_WARNING,
        title=trouble.title,
        tenant_id=trouble.tenant_id,
        evidence=trouble.evidence,
    )
