"""SubscriptionsService: tenants, and where they stand."""

from billing.subscriptions.v1 import subscriptions_pb2 as pb

from services.subscriptions.actions import current, provision
from services.subscriptions.rpc import messages
from services.subscriptions.rpc.messages import Context
from services.subscriptions.rpc.room import Desk
from services.subscriptions.rules.lifecycle import Subscription

_STAGES = {
    None: pb.PAST_DUE_STAGE_UNSPECIFIED,
    "day_1": pb.PAST_DUE_STAGE_DAY_1,
    "day_3": pb.PAST_DUE_STAGE_DAY_3,
    "day_7": pb.PAST_DUE_STAGE_DAY_7,
}


class Tenants(Desk):
    """Provisioning and GetCurrent."""

    async def ProvisionTenant(
        self, request: pb.ProvisionTenantRequest, context: Context
    ) -> pb.ProvisionTenantResponse:
        provisioned = await provision.provision_tenant(
            self._room.engine,
            tenant_id=request.tenant_id,
            idempotency_key=request.idempotency_key,
            now=self._room.clock(),
        )
        await self._room.reconciler.attempt(request.tenant_id)
        return pb.ProvisionTenantResponse(
            plan_code=provisioned.plan_id,
            status=messages.status_of(provisioned.status),
            entitlements_version=provisioned.entitlements_version,
            created=provisioned.created,
        )

    async def GetCurrent(self, request: pb.GetCurrentRequest, context: Context) -> pb.GetCurrentResponse:
        room = self._room
        found = await current.get_current(
            room.engine, room.ledger, room.policy, tenant_id=request.tenant_id, now=room.clock()
        )
        return current_response(found)


def current_response(found: current.Current) -> pb.GetCurrentResponse:
    """Where a tenant stands, as the contract says it."""
    row = found.row
    return pb.GetCurrentResponse(
        plan_code=row.plan_id,
        plan_name=found.plan_name,
        cycle=messages.CYCLES[row.billing_cycle],
        status=messages.status_of(row.status),
        current_period_start_at=messages.timestamp(row.current_period_start),
        current_period_end_at=messages.timestamp(row.current_period_end),
        trial_end_at=messages.timestamp(row.trial_end),
        cancel_at_period_end=row.cancel_at_period_end,
        has_used_trial=row.has_used_trial,
        past_due_since_at=messages.timestamp(row.past_due_since),
        subscription_id=row.razorpay_subscription_id or "",
        credits=_credits(found),
        usage=_usage(found),
        pending_change=pending_change(row) if row.has_pending_change else None,
        alerts=[
            pb.TenantAlert(
                kind=pb.TenantAlertKind.Value(f"TENANT_ALERT_KIND_{alert.kind.upper()}"),
                stage=_STAGES[alert.stage],
                message=alert.message,
                since_at=messages.timestamp(alert.since),
                subject=alert.subject,
            )
            for alert in found.alerts
        ],
        entitlements_version=row.entitlements_version,
    )


def _credits(found: current.Current) -> pb.Credits:
    wallet = found.wallet
    if wallet is None:
        return pb.Credits(unavailable=True)
    return pb.Credits(
        available=wallet.available,
        held=wallet.held,
        subscription=wallet.subscription,
        permanent=wallet.permanent,
        next_expiry_at=messages.timestamp(wallet.next_expiry_at),
    )


def _usage(found: current.Current) -> list[pb.LimitUsage]:
    return [
        pb.LimitUsage(
            service_code=service.service,
            limit=messages.limit_of(limit),
            used=found.usage.get(f"{service.service}.{limit.key}"),
        )
        for service in found.services
        for limit in service.limits
    ]


def pending_change(row: Subscription) -> pb.PendingChange:
    kind = (row.pending_kind or "unspecified").upper()
    return pb.PendingChange(
        kind=pb.ChangeKind.Value(f"CHANGE_KIND_{kind}"),
        plan_code=row.pending_plan_id or "",
        cycle=messages.CYCLES[row.pending_billing_cycle],
        subscription_id=row.pending_razorpay_subscription_id or "",
        since_at=messages.timestamp(row.pending_since),
        effective_at=messages.timestamp(row.pending_effective_at),
    )
