"""What the house says of itself: proofs, findings, open tasks, jobs that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.year.evidence import Evidence, Row

# What a run may report of the provider at the end, when nothing moves any more.
SYNC_ZERO = ("differences", "tasksQueued", "orphans")
LATE_SECONDS = 12 * 3600
AUDIT_ZERO = ("opened", "open", "findingsOpened")
HEALTH_ZERO = ("openDisputes", "abandonedTasks")


def ledger_proofs(evidence: Evidence) -> Iterator[str]:
    """VerifyLedger proves every account."""
    proven = {row["tenant_id"] for row in evidence.verifications if row["verified"] and not row["findings"]}
    for account in evidence.tables["ledger_accounts"]:
        if account["tenant_id"] not in proven:
            found = [row for row in evidence.verifications if row["tenant_id"] == account["tenant_id"]]
            yield f"{account['tenant_id']}: VerifyLedger does not prove it: {found}"


def findings(evidence: Evidence) -> Iterator[str]:
    """No finding is open but those that tell a person of the world outside, each of something that is so."""
    for row in evidence.tables["findings"]:
        is_so = OF_THE_WORLD.get(row["check_type"])
        if is_so is None or not is_so(evidence, {**row["observed"], "tenantId": row["tenant_id"]}):
            yield f"finding {row['check_type']} ({row['room']}) of {row['tenant_id']}: {row['observed']}"
    for row in evidence.tables["false_alarms"]:
        yield f"money of {row['tenant_id']} was missed that was there: {row['observed']}, {row['created_at']}"


def _is_lost(evidence: Evidence, observed: Row) -> bool:
    dispute = evidence.provider["disputes"].get(observed.get("disputeId", ""))
    return dispute is not None and dispute["status"] == "lost"


def _is_refused(evidence: Evidence, observed: Row) -> bool:
    """The provider refused to give this money back, and did not do so."""
    given_back = {row["notes"]["refund_id"] for row in evidence.provider["refunds"].values() if row["notes"]}
    refused = observed.get("refundId")
    return refused not in given_back and any(
        row["id"] == refused and row["status"] == "failed" for row in evidence.tables["refunds"]
    )


def _is_too_old(evidence: Evidence, observed: Row) -> bool:
    """Nobody could give it back any more: the provider's window was closed."""
    return any(
        (row["payment_id"], row["change_id"], row["status"], row["provider_refund_id"])
        == (observed.get("paymentId"), observed.get("changeId"), "failed", None)
        for row in evidence.tables["refunds"]
    )


def _is_spent(evidence: Evidence, observed: Row) -> bool:
    """All that would have gone back had been spent as credits."""
    return any(
        (row["id"], row["kind"], row["status"], row["provider_refund_id"])
        == (observed.get("refundId"), "proration", "failed", None)
        for row in evidence.tables["refunds"]
    )


def _was_told_late(evidence: Evidence, observed: Row) -> bool:
    """A charge whose deliveries were lost, while the customer asked for the end of what it paid for."""
    charged = evidence.provider["payments"].get(observed.get("paymentId", ""))
    return charged is not None and any(
        row["id"] == charged["id"] and row["received_at"].timestamp() > charged["created_at"] + LATE_SECONDS
        for row in evidence.tables["payments"]
    )


def _is_over(evidence: Evidence, observed: Row) -> bool:
    """The tenant uses more than it may, as after a downgrade, of each limit that is named."""
    tenant, limits = observed["tenantId"], observed.get("limits", {})
    used = {
        row["limit_key"]: row["used"] for row in evidence.tables["ledger_usage"] if row["tenant_id"] == tenant
    }
    for path in limits:
        service, _, key = path.partition(".")
        held = next(
            row["limits"][key]["limit"]
            for row in evidence.tables["ledger_services"]
            if (row["tenant_id"], row["service_code"]) == (tenant, service)
        )
        if held is None or used.get(path, 0) <= held:
            return False
    return bool(limits)


OF_THE_WORLD: dict[str, Callable[[Evidence, Row], bool]] = {
    "dispute_lost": _is_lost,
    "refund_failed": _is_refused,
    "unused_not_refundable": _is_too_old,
    "unused_was_spent": _is_spent,
    "over_limit": _is_over,
    "charged_after_scheduled_end": _was_told_late,
}


def tasks(evidence: Evidence) -> Iterator[str]:
    """Nothing is owed any more, nothing was given up, nothing was set aside."""
    for row in evidence.tables["tasks"]:
        state = "abandoned" if row["abandoned_at"] else "open"
        yield (
            f"{state} task {row['task_type']} {row['idempotency_key']} of {row['tenant_id']}, {row['attempts']} attempts:"
            f" {row['last_error']}; {row['payload']}"
        )
    for row in evidence.tables["dead_letters"]:
        yield f"dead letter {row['event_type']} of {row['tenant_id']}: {row['reason']} {row['last_error']}"


def jobs(evidence: Evidence) -> Iterator[str]:
    """Every job succeeded, the last audit and the last comparison found nothing."""
    yield from evidence.failed_jobs
    yield from evidence.told.trouble
    for name in evidence.unserved:
        yield f"{name} is not served"
    sync = evidence.told.sync.get("subscriptions.SyncWithProvider", {})
    yield from _not_zero("the last comparison with the provider", sync, SYNC_ZERO)
    if not int(sync.get("compared") or 0) and evidence.provider["subscriptions"]:
        yield "the last comparison with the provider compared nothing"
    for call in ("ledger.AuditIntegrity", "subscriptions.AuditSubscriptions"):
        said = evidence.told.audit.get(call)
        if said is None or said.get("outcome") != "succeeded":
            yield f"the last audit: {call} answered {said}"
        else:
            yield from _not_zero(f"the last audit, {call}", said, AUDIT_ZERO)
    yield from _health(evidence)


def _health(evidence: Evidence) -> Iterator[str]:
    said = evidence.told.health.get("subscriptions.CheckHealth")
    if said is None or said.get("outcome") != "succeeded":
        yield f"the last look at charging: CheckHealth answered {said}"
        return
    yield from _not_zero("the last look at charging", said, HEALTH_ZERO)
    critical = [
        row["id"]
        for row in evidence.tables["findings"]
        if (row["room"], row.get("severity")) == ("subscriptions", "critical")
    ]
    if int(said.get("openCriticalFindings") or 0) != len(critical):
        yield f"CheckHealth counts {said.get('openCriticalFindings')} critical findings, open are {critical}"


def _not_zero(what: str, said: dict[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        if said.get(name) not in (None, 0, "0", []):
            yield f"{what}: {name} is {said[name]}"
