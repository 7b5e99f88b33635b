"""The scheduler's door: what time does to the ledger, and its proof of itself."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import grpc
from billing.ledger.v1 import ledger_maintenance_pb2 as maintenance_pb
from billing.ledger.v1 import ledger_maintenance_pb2_grpc
from billing.maintenance.v1 import alert_pb2

from services.ledger.actions import Ledger, audit, cleanup, settling
from services.ledger.actions.audit import Audited
from services.ledger.rules.findings import Found
from shared.rpc.context import DEFAULT_TIMEOUT_SECONDS, remaining_seconds

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class LedgerMaintenanceService(ledger_maintenance_pb2_grpc.LedgerMaintenanceServiceServicer):
    """What time does to the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def SettleExpired(
        self, request: maintenance_pb.SettleExpiredRequest, context: Context
    ) -> maintenance_pb.SettleExpiredResponse:
        settled = await settling.settle_expired(
            self._ledger,
            dry_run=request.dry_run,
            time_left_seconds=remaining_seconds() or DEFAULT_TIMEOUT_SECONDS,
        )
        return maintenance_pb.SettleExpiredResponse(
            lots=settled.lots,
            credits=settled.credits,
            holds=settled.holds,
            grace_periods=settled.grace_periods,
            alerts=_overdue(settled.overdue),
        )

    async def AuditIntegrity(
        self, request: maintenance_pb.AuditIntegrityRequest, context: Context
    ) -> maintenance_pb.AuditIntegrityResponse:
        audited = await audit.audit_integrity(
            self._ledger,
            dry_run=request.dry_run,
            time_left_seconds=remaining_seconds() or DEFAULT_TIMEOUT_SECONDS,
        )
        return maintenance_pb.AuditIntegrityResponse(
            tenants=audited.tenants,
            opened=audited.opened,
            closed=audited.closed,
            open=audited.open,
            alerts=_alerts(audited),
        )

    async def Cleanup(
        self, request: maintenance_pb.CleanupRequest, context: Context
    ) -> maintenance_pb.CleanupResponse:
        grace_periods, rate_limits = await cleanup.cleanup(
            self._ledger,
            dry_run=request.dry_run,
            time_left_seconds=remaining_seconds() or DEFAULT_TIMEOUT_SECONDS,
        )
        return maintenance_pb.CleanupResponse(grace_periods=grace_periods, rate_limit_buckets=rate_limits)


def _overdue(overdue: Sequence[Found]) -> list[alert_pb2.Alert]:
    """One alert for all who wait: what cannot be settled has one cause more often than many."""
    if not overdue:
        return []
    evidence = {
        what: str(sum(each.observed[what] for each in overdue)) for what in ("lots", "holds", "grace_periods")
    }
    evidence["since"] = str(overdue[0].observed["due_at"])
    evidence["tenants"] = ", ".join(each.tenant_id for each in overdue[:5])
    return [
        alert_pb2.Alert(
            key="ledger.settle.overdue",
            severity=alert_pb2.ALERT_SEVERITY_WARNING,
            title=f"What ended over an hour ago could not be settled for {len(overdue)} tenants",
            evidence=evidence,
        )
    ]


def _alerts(audited: Audited) -> list[alert_pb2.Alert]:
    alerts = [
        alert_pb2.Alert(
            key=f"ledger.integrity.{each.check_type}:{each.id or each.tenant_id}",
            severity=alert_pb2.ALERT_SEVERITY_CRITICAL,
            title=f"The ledger's audit found {each.check_type}",
            tenant_id=each.tenant_id,
            evidence={"finding": each.id} | {name: str(value) for name, value in each.observed.items()},
        )
        for each in audited.critical
    ]
    if audited.critical_more:
        alerts.append(
            alert_pb2.Alert(
                key="ledger.integrity.more",
                severity=alert_pb2.ALERT_SEVERITY_CRITICAL,
                title=f"{audited.critical_more} more critical findings are open in the ledger",
                evidence={"more": str(audited.critical_more)},
            )
        )
    if not audited.finished:
        alerts.append(
            alert_pb2.Alert(
                key="ledger.integrity.unfinished",
                severity=alert_pb2.ALERT_SEVERITY_WARNING,
                title="The audit's time was too short for all tenants; its next run goes on where it stopped",
                evidence={"tenants": str(audited.tenants), "lines": str(audited.lines)},
            )
        )
    return alerts
