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
    "paid_without_grant": "Money was captured and its credits are missing",
    "granted_without_payment": "Credits were created without the money that they name",
    "entitlements_differ": "Limits are not those of the plan",
    "active_without_entitlements": "A tenant has a plan and no limits at all",
    "two_live_subscriptions": "Two subscriptions of one tenant may both charge",
    "charged_after_end": "Money was taken for a time after the subscription had ended",
    "missed_escalation": "A tenant who never paid should be on free by now",
    "stuck_checkout": "An upgrade was authorised more than three days ago and is not in force",
    "over_limit": "A tenant uses more than its plan allows",
    "charge_without_subscription": "Money was taken for a subscription that we did not begin",
    "payment_not_held": "The provider took money in a tenant's name that we do not hold",
    "purchase_paid_twice": "A credit pack was paid twice",
    "purchase_amount_mismatch": "A credit pack was paid with another amount than was asked for",
    "charge_amount_mismatch": "A subscription was charged nothing, or in another currency",
    "charged_after_scheduled_end": "The provider charged after the end that a customer had scheduled",
    "refund_failed": "A refund failed: the money has to go back by another way",
    "dispute_lost": "A dispute was lost",
    "late_charge": "A charge was heard of after its period",
    "unused_not_refundable": "An unused part of a payment is too old to be refunded",
    "unused_was_spent": "Credits of an unused period were spent before its money went back",
}


class Audits(Desk):
    """AuditSubscriptions."""

    async def AuditSubscriptions(
        self, request: pb.AuditSubscriptionsRequest, context: Context
    ) -> pb.AuditSubscriptionsResponse:
        audited = await audit.audit_subscriptions(
            self._room.engine,
            self._room.ledger,
            self._room.policy,
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
    """An open finding, under a key of its own: one that comes back after a person closed it is told anew."""
    observed = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in finding.observed.items()
        if value not in (None, "", [])
    }
    return alert_pb2.Alert(
        key=f"subscriptions.{finding.check_type}:{finding.id}",
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
