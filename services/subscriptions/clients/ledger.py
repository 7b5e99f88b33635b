"""The ledger, as this room needs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import grpc
from billing.ledger.v1 import (
    ledger_funding_pb2,
    ledger_funding_pb2_grpc,
    ledger_pb2,
    ledger_pb2_grpc,
    types_pb2,
)
from google.protobuf.timestamp_pb2 import Timestamp

from services.subscriptions.rules.entitlements import Limit, ServiceEntitlement
from services.subscriptions.rules.findings import Held, Lot

BUCKETS = {"subscription": types_pb2.BUCKET_SUBSCRIPTION, "permanent": types_pb2.BUCKET_PERMANENT}
_KINDS = {"hard": types_pb2.LIMIT_KIND_HARD, "soft": types_pb2.LIMIT_KIND_SOFT}
# A page that asks where a tenant stands must not wait long for the wallet.
READ_TIMEOUT_SECONDS = 2.0
_PAGE = 500


@dataclass(frozen=True)
class Wallet:
    """What a tenant may spend."""

    available: int
    held: int
    subscription: int
    permanent: int
    next_expiry_at: datetime | None


class Ledger:
    """Calls the ledger with this room's key; every refusal is raised as the ledger raised it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._funding = ledger_funding_pb2_grpc.LedgerFundingServiceStub(channel)
        self._ledger = ledger_pb2_grpc.LedgerServiceStub(channel)

    async def grant_credits(
        self,
        *,
        tenant_id: str,
        idempotency_key: str,
        bucket: str,
        credits: int,
        expires_at: datetime | None,
        reference_id: str,
        reason: str,
        description: str,
    ) -> bool:
        """Create credits once; True if an earlier call did it."""
        response = await self._funding.GrantCredits(
            ledger_funding_pb2.GrantCreditsRequest(
                tenant_id=tenant_id,
                idempotency_key=idempotency_key,
                bucket=BUCKETS[bucket],
                credits=credits,
                expires_at=_timestamp(expires_at),
                reference_id=reference_id,
                reason=reason,
                description=description,
            )
        )
        return bool(response.replayed)

    async def revoke_grant(
        self,
        *,
        tenant_id: str,
        idempotency_key: str,
        grant_reference_id: str,
        credits: int,
        reference_id: str,
        reason: str,
        description: str,
    ) -> tuple[int, int, int]:
        """Take credits of a grant back; answers (taken, claimed from what may return, spent before)."""
        response = await self._funding.RevokeGrant(
            ledger_funding_pb2.RevokeGrantRequest(
                tenant_id=tenant_id,
                idempotency_key=idempotency_key,
                grant_reference_id=grant_reference_id,
                credits=credits,
                reference_id=reference_id,
                reason=reason,
                description=description,
            )
        )
        return response.taken, response.claimed, response.already_spent

    async def restore_grant(
        self, *, tenant_id: str, idempotency_key: str, revoke_reference_id: str, reference_id: str
    ) -> None:
        """Give back what a revocation took."""
        await self._funding.RestoreGrant(
            ledger_funding_pb2.RestoreGrantRequest(
                tenant_id=tenant_id,
                idempotency_key=idempotency_key,
                revoke_reference_id=revoke_reference_id,
                reference_id=reference_id,
                description="a dispute was won",
            )
        )

    async def set_entitlements(
        self,
        *,
        tenant_id: str,
        idempotency_key: str,
        version: int,
        plan_code: str,
        services: Sequence[ServiceEntitlement],
    ) -> bool:
        """Replace a tenant's limits; False if the ledger holds newer ones."""
        response = await self._funding.SetEntitlements(
            ledger_funding_pb2.SetEntitlementsRequest(
                tenant_id=tenant_id,
                idempotency_key=idempotency_key,
                version=version,
                plan_code=plan_code,
                services=[_entitlement(service) for service in services],
            )
        )
        return response.outcome == ledger_funding_pb2.ENTITLEMENTS_OUTCOME_APPLIED

    async def debit(
        self,
        *,
        tenant_id: str,
        idempotency_key: str,
        credits: int,
        reason: str,
        reference_id: str,
        description: str,
    ) -> bool:
        """Take credits once, all or none; True if an earlier call did it."""
        response = await self._ledger.Debit(
            ledger_pb2.DebitRequest(
                tenant_id=tenant_id,
                idempotency_key=idempotency_key,
                credits=credits,
                reason=reason,
                reference_id=reference_id,
                description=description,
            )
        )
        return bool(response.replayed)

    async def get_wallet(self, tenant_id: str) -> Wallet:
        """What the tenant may spend now."""
        response = await self._ledger.GetBalance(
            ledger_pb2.GetBalanceRequest(tenant_id=tenant_id), timeout=READ_TIMEOUT_SECONDS
        )
        balance = response.balance
        in_bucket = {bucket.bucket: bucket.credits for bucket in balance.buckets}
        return Wallet(
            available=balance.available,
            held=balance.held,
            subscription=in_bucket.get(types_pb2.BUCKET_SUBSCRIPTION, 0),
            permanent=in_bucket.get(types_pb2.BUCKET_PERMANENT, 0),
            next_expiry_at=(
                balance.next_expires_at.ToDatetime(UTC) if balance.HasField("next_expires_at") else None
            ),
        )

    async def list_usage(self, tenant_id: str) -> dict[str, int]:
        """How much of each limit is used, by `blog.posts`."""
        response = await self._funding.ListUsage(
            ledger_funding_pb2.ListUsageRequest(tenant_id=tenant_id, page_size=_PAGE),
            timeout=READ_TIMEOUT_SECONDS,
        )
        return {usage.limit_key: usage.used for usage in response.usage}

    async def list_grants(self, tenant_id: str) -> list[Lot]:
        """Every lot of a tenant, spent and expired ones too, newest first."""
        lots: list[Lot] = []
        request = ledger_funding_pb2.ListGrantsRequest(tenant_id=tenant_id, page_size=_PAGE)
        while True:
            response = await self._funding.ListGrants(request, timeout=READ_TIMEOUT_SECONDS)
            lots += [
                Lot(lot.reference_id, lot.granted, lot.created_at.ToDatetime(UTC)) for lot in response.grants
            ]
            if not response.next_page_token:
                return lots
            request.page_token = response.next_page_token

    async def left_of(self, tenant_id: str, reference_ids: Sequence[str]) -> int:
        """What of these grants is not spent; what is held counts, since it can still be taken."""
        missing, left = set(reference_ids), 0
        request = ledger_funding_pb2.ListGrantsRequest(tenant_id=tenant_id, page_size=_PAGE)
        while True:
            response = await self._funding.ListGrants(request, timeout=READ_TIMEOUT_SECONDS)
            for lot in response.grants:
                if lot.reference_id in reference_ids:
                    missing.discard(lot.reference_id)
                    left += lot.remaining
            if not missing or not response.next_page_token:
                return left
            request.page_token = response.next_page_token

    async def get_entitlements(self, tenant_id: str) -> Held:
        """The limits that the ledger enforces."""
        response = await self._funding.GetEntitlements(
            ledger_funding_pb2.GetEntitlementsRequest(tenant_id=tenant_id), timeout=READ_TIMEOUT_SECONDS
        )
        return Held(
            response.version, response.plan_code, tuple(_entitled(service) for service in response.services)
        )


def _entitlement(service: ServiceEntitlement) -> types_pb2.ServiceEntitlement:
    return types_pb2.ServiceEntitlement(
        service_code=service.service,
        enabled=service.enabled,
        limits=[
            types_pb2.Limit(
                key=limit.key,
                kind=_KINDS[limit.kind],
                grace_seconds=limit.grace_seconds,
                addon=limit.addon,
                **({"unlimited": True} if limit.value is None else {"value": limit.value}),
            )
            for limit in service.limits
        ],
    )


def _entitled(service: types_pb2.ServiceEntitlement) -> ServiceEntitlement:
    kinds = {number: kind for kind, number in _KINDS.items()}
    return ServiceEntitlement(
        service.service_code,
        service.enabled,
        tuple(
            Limit(
                limit.key,
                None if limit.unlimited else limit.value,
                kinds.get(limit.kind, "hard"),
                limit.grace_seconds,
                limit.addon,
            )
            for limit in service.limits
        ),
    )


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
