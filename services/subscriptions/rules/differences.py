"""Where our books and the provider's word differ, and the command that mends it."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.subscriptions.rules.events import TERMINAL, ProviderSubscription
from services.subscriptions.rules.fence import KnownSubscription

_ADMIN = "billing.subscriptions.v1.SubscriptionsAdminService"
_SCHEDULER = "billing.scheduler.v1.SchedulerService"
_PRODUCT = "billing.subscriptions.v1.SubscriptionsService"
SUBSCRIPTIONS, SCHEDULER = "127.0.0.1:50052", "127.0.0.1:50054"
NOBODY = "none"


@dataclass(frozen=True)
class Difference:
    """One difference; without a command it mends itself or needs a person's judgement."""

    field: str
    ours: str
    theirs: str
    next_command: str = ""


def between(
    known: KnownSubscription, snapshot: ProviderSubscription, *, payments: int, plan_of_row: str | None
) -> list[Difference]:
    """How our books differ from the provider's word on a subscription.

    `payments` are those of it in our mirror, `plan_of_row` is the tenant's plan where this is what it relies on.
    """
    found = []
    if known.status != snapshot.status:
        found.append(Difference("status", known.status, snapshot.status))
    if known.paid_count != snapshot.paid_count:
        found.append(Difference("paid_count", str(known.paid_count), str(snapshot.paid_count)))
    if snapshot.paid_count > payments:
        found.append(
            Difference("missing_grant", f"{payments} payments", f"{snapshot.paid_count} paid cycles")
        )
    if plan_of_row is not None and plan_of_row != known.plan_id:
        found.append(Difference("plan_id", plan_of_row, known.plan_id))
    if known.provider_plan_id != snapshot.provider_plan_id:
        found.append(
            Difference("provider_plan_id", known.provider_plan_id or NOBODY, snapshot.provider_plan_id)
        )
    if snapshot.current_end is not None and known.current_end != snapshot.current_end:
        found.append(
            Difference("current_end", shown(known.current_end) or NOBODY, shown(snapshot.current_end))
        )
    return found


# What asking the provider again mends. What a subscription charges for is neither ours nor the provider's to change.
MENDED_BY_FETCHING = frozenset({"status", "paid_count", "missing_grant", "plan_id", "current_end"})


def is_charging(snapshot: ProviderSubscription) -> bool:
    """Whether money is or may be taken for it."""
    return snapshot.status not in TERMINAL and (
        snapshot.paid_count > 0 or snapshot.status not in ("", "created", "authenticated")
    )


def shown(moment: datetime | None) -> str:
    """A moment as people read it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else ""


@dataclass(frozen=True)
class Commands:
    """Commands that run as they are printed, where $KEY and the addresses are set as the README does.

    A diagnosis prints one key for each command: repeated it changes nothing, and a later diagnosis has another.
    """

    tenant_id: str
    now: datetime

    def rebuild_entitlements(self) -> str:
        """Builds and pushes the tenant's limits."""
        return self._admin("RebuildEntitlements", "rebuild", {"tenantId": self.tenant_id})

    def retry_task(self, task_id: str) -> str:
        """Gives a task ten new attempts."""
        return self._admin("RetryReconciliationTask", f"retry:{task_id}", {"taskId": task_id})

    def promote_pending_change(self) -> str:
        """Makes the pending change real, if the provider says that it is paid."""
        return self._admin("PromotePendingChange", "promote", {"tenantId": self.tenant_id})

    def cancel_orphan(self, subscription_id: str) -> str:
        """Ends a subscription that nobody relies on."""
        about = {"tenantId": self.tenant_id, "subscriptionId": subscription_id}
        return self._admin("CancelOrphanSubscription", f"cancel:{subscription_id}", about)

    def refund_payment(self, payment_id: str) -> str:
        """Gives a payment back."""
        about = {"tenantId": self.tenant_id, "paymentId": payment_id}
        return self._admin("RefundPayment", f"refund:{payment_id}", about)

    def cancel_pending_change(self) -> str:
        """Undoes a change that nobody paid or authorised."""
        body = {"tenantId": self.tenant_id, "idempotencyKey": self._key("undo")}
        return _curl("SUBSCRIPTIONS_ADDRESS", SUBSCRIPTIONS, f"{_PRODUCT}/CancelPendingChange", body)

    def sync(self) -> str:
        """Compares every subscription with the provider's; operators reach that job through the scheduler."""
        body = {"job": "sync_provider", **self._because("sync")}
        return _curl("SCHEDULER_ADDRESS", SCHEDULER, f"{_SCHEDULER}/RunJob", body)

    def _admin(self, method: str, what: str, about: Mapping[str, str]) -> str:
        body = {**about, **self._because(what)}
        return _curl("SUBSCRIPTIONS_ADDRESS", SUBSCRIPTIONS, f"{_ADMIN}/{method}", body)

    def _key(self, what: str) -> str:
        return f"diagnosis:{self.now:%Y%m%dT%H%M%SZ}:{what}:{self.tenant_id}"

    def _because(self, what: str) -> dict[str, str]:
        return {
            "idempotencyKey": self._key(what),
            "actor": "operator",
            "reason": "as the diagnosis says",
        }


def _curl(variable: str, default: str, method: str, body: Mapping[str, Any]) -> str:
    url = f'"http://${{{variable}:-{default}}}/{method}"'
    curl = '.venv/bin/buf curl --protocol grpc --reflect-header "*" -H "$KEY"'
    return f"{curl} -d {shlex.quote(json.dumps(body))} {url}"
