"""SubscriptionsMaintenanceService: what should not be."""

import json

from billing.maintenance.v1 import alert_pb2
from billing.subscriptions.v1 import subscriptions_maintenance_pb2 as pb

from services.subscriptions.actions import audit
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk
from services.subscriptions.rules.findings import OpenFinding
from shared.rpc.context import DEFAULT_TIMEOUT_SECONDS, remaining_seconds

SEVERITIES = {
    "warning": alert_pb2.ALERT_SEVERITY_WARNING,
    "critical": alert_pb2.ALERT_SEVERITY_CRITICAL,
}
_TITLES = {
    "orphan_pending_sub": "An upgrade waits for its payment for more than three days",
    "orphan_provider_sub": "The provider has a subscription that names a tenant of ours and that we did not begin",
    "paid_without_grant": "Money was captured and its credits are missing",
    "granted_without_payment": "Credits were created without the money that they name",
    "entitlements_differ": "Limits are not those of the plan",
    "active_without_entitlements": "A tenant has a plan and no limits at all",
    "stuck_task": "Tasks were given up after ten attempts",
    "two_live_subscriptions": "Two subscriptions of one tenant may both charge",
    "charged_after_end": "Money was taken for a time after the subscription had ended",
}


class Audits(Desk):
    """AuditSubscriptions."""

    async def AuditSubscriptions(
        self, request: pb.AuditSubscriptionsRequest, context: Context
    ) -> pb.AuditSubscriptionsResponse:
        audited = await audit.audit_subscriptions(
            self._room.engine,
            self._room.ledger,
            clock=self._room.clock,
            dry_run=request.dry_run,
            time_left_seconds=remaining_seconds() or DEFAULT_TIMEOUT_SECONDS,
        )
        return pb.AuditSubscriptionsResponse(
            tenants=audited.tenants,
            findings_opened=audited.opened,
            findings_resolved=audited.resolved,
            alerts=_alerts(audited),
        )


def finding_alert(finding: OpenFinding) -> alert_pb2.Alert:
    """An open finding, under a key that stays the same until it is resolved."""
    observed = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in finding.observed.items()
        if value not in (None, "", [])
    }
    return alert_pb2.Alert(
        key=f"subscriptions.{finding.check_type}:{finding.tenant_id or ''}",
        severity=SEVERITIES[finding.severity],
        title=_TITLES.get(finding.check_type, f"An open finding: {finding.check_type}"),
        tenant_id=finding.tenant_id or "",
        evidence={"finding_id": finding.id, **observed},
    )


def _alerts(audited: audit.Audited) -> list[alert_pb2.Alert]:
    alerts = [finding_alert(finding) for finding in audited.open]
    if audited.more:
        alerts.append(
            alert_pb2.Alert(
                key="subscriptions.more_findings",
                severity=alert_pb2.ALERT_SEVERITY_WARNING,
                title=f"and {audited.more} more open findings",
            )
        )
    if audited.without_ledger:
        alerts.append(
            alert_pb2.Alert(
                key="subscriptions.audit.without_ledger",
                severity=alert_pb2.ALERT_SEVERITY_WARNING,
                title="The ledger did not answer: grants and limits were not compared with it",
                evidence={"tenants": str(audited.without_ledger)},
            )
        )
    if not audited.finished:
        alerts.append(
            alert_pb2.Alert(
                key="subscriptions.audit.unfinished",
                severity=alert_pb2.ALERT_SEVERITY_WARNING,
                title="The audit's time was too short for all tenants; its next run goes on where it stopped",
                evidence={"tenants": str(audited.tenants)},
            )
        )
    return alerts
