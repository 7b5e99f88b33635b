"""The table of jobs: what is called when. Schedules are in UTC."""

from datetime import timedelta

from services.scheduler.rules import Job, Target


def _ledger(method: str) -> Target:
    return Target("ledger", "billing.ledger.v1.LedgerMaintenanceService", method)


def _subscriptions(method: str) -> Target:
    return Target("subscriptions", "billing.subscriptions.v1.SubscriptionsMaintenanceService", method)


def _webhooks(method: str) -> Target:
    return Target("webhooks", "billing.webhooks.v1.WebhooksMaintenanceService", method)


EVERY_MINUTE, EVERY_FIVE_MINUTES, HOURLY = "* * * * *", "*/5 * * * *", "0 * * * *"
# Below a minute where a tick comes every minute: a call that hangs costs one tick, not two.
SHORT, LONG = timedelta(seconds=50), timedelta(minutes=10)

JOBS = (
    Job("deliver_webhooks", EVERY_MINUTE, (_webhooks("DeliverPending"),), SHORT),
    Job("reconcile", EVERY_FIVE_MINUTES, (_subscriptions("Reconcile"),), timedelta(minutes=4)),
    Job("settle_expired", EVERY_MINUTE, (_ledger("SettleExpired"),), SHORT),
    Job("grant_due_credits", HOURLY, (_subscriptions("GrantDueCredits"),), LONG),
    Job("escalation", HOURLY, (_subscriptions("EscalatePastDue"),), LONG),
    Job("addon_renewals", HOURLY, (_subscriptions("RenewAddons"),), LONG),
    Job("cleanup", HOURLY, (_ledger("Cleanup"), _subscriptions("Cleanup"), _webhooks("Cleanup")), LONG),
    Job("webhook_health", EVERY_FIVE_MINUTES, (_webhooks("CheckHealth"),), SHORT),
    Job("billing_health", EVERY_FIVE_MINUTES, (_subscriptions("CheckHealth"),), SHORT),
    Job(
        "audit_integrity",
        "0 3 * * *",
        (_ledger("AuditIntegrity"), _subscriptions("AuditSubscriptions")),
        LONG,
    ),
    Job("sync_provider", "0 4 * * *", (_subscriptions("SyncWithProvider"),), LONG),
)
BY_NAME = {job.name: job for job in JOBS}
