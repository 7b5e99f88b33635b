"""SubscriptionsMaintenanceService: what must not wait for the nightly audit."""

from billing.maintenance.v1 import alert_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb

from services.subscriptions.actions.health import check_health
from services.subscriptions.rpc.audit import SEVERITIES, finding_alert
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk
from services.subscriptions.rules.amounts import format_inr
from services.subscriptions.rules.health import Health as Seen
from services.subscriptions.rules.health import OpenDispute


class Health(Desk):
    """CheckHealth."""

    async def CheckHealth(self, request: pb.CheckHealthRequest, context: Context) -> pb.CheckHealthResponse:
        seen = await check_health(self._room.engine, self._room.policy, now=self._room.clock())
        return pb.CheckHealthResponse(
            payments_succeeded_last_hour=seen.succeeded,
            payments_failed_last_hour=seen.failed,
            open_disputes=seen.open_disputes,
            abandoned_tasks=seen.abandoned,
            open_critical_findings=seen.critical,
            alerts=[
                *map(finding_alert, seen.findings),
                *map(_dispute, seen.disputes),
                *_conditions(seen, notices_are_posted=self._room.notices is not None),
            ],
        )


def _dispute(of: OpenDispute) -> alert_pb2.Alert:
    # Whoever contested it waits for the bank; until then there is a date by which somebody must.
    is_new = of.status == "open"
    return alert_pb2.Alert(
        key=f"subscriptions.dispute_open:{of.id}",
        severity=SEVERITIES["critical" if is_new else "warning"],
        title=f"A customer disputes {format_inr(of.amount_paise)}: "
        + ("contest or accept it in the provider's dashboard" if is_new else "the bank is deciding"),
        tenant_id=of.tenant_id or "",
        evidence={
            "dispute_id": of.id,
            "payment_id": of.payment_id,
            "phase": of.phase,
            "status": of.status,
        },
    )


def _conditions(seen: Seen, *, notices_are_posted: bool) -> list[alert_pb2.Alert]:
    """What holds for the room and for no single tenant."""
    alerts = []
    if seen.fails_often:
        alerts.append(
            alert_pb2.Alert(
                key="subscriptions.payment_failures",
                severity=alert_pb2.ALERT_SEVERITY_CRITICAL,
                title=f"{seen.failed} of {seen.succeeded + seen.failed} charges failed in the last hour",
                evidence={"succeeded": str(seen.succeeded), "failed": str(seen.failed)},
            )
        )
    if seen.overdue.oldest_due_at is not None:
        alerts.append(
            alert_pb2.Alert(
                key="subscriptions.tasks_overdue",
                severity=alert_pb2.ALERT_SEVERITY_CRITICAL,
                title="Tasks are due for more than an hour and nobody attempts them: does `reconcile` run?",
                evidence={
                    "count": str(seen.overdue.count),
                    "oldest_due_at": seen.overdue.oldest_due_at.isoformat(),
                },
            )
        )
    if notices_are_posted and seen.notices_owed_long:
        alerts.append(
            alert_pb2.Alert(
                key="subscriptions.notices_undelivered",
                severity=alert_pb2.ALERT_SEVERITY_WARNING,
                title=f"{seen.notices_owed_long} notices to tenants did not arrive for a day, or in ten attempts",
                evidence={"count": str(seen.notices_owed_long)},
            )
        )
    more = seen.more_findings + seen.open_disputes - len(seen.disputes)
    if more:
        alerts.append(
            alert_pb2.Alert(
                key="subscriptions.more_findings",
                severity=alert_pb2.ALERT_SEVERITY_WARNING,
                title=f"and {more} more open findings and disputes",
            )
        )
    return alerts
