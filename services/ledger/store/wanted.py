"""Which rows a batch of operations is about."""

from collections.abc import Sequence
from datetime import timedelta

from services.ledger.rules.requests import (
    Authorize,
    CaptureHold,
    Consume,
    ExtendHold,
    Grant,
    Group,
    Keyed,
    Operation,
    RebuildMirrors,
    Refund,
    Release,
    Restore,
    Revoke,
    Settle,
    SetUsage,
    VoidHold,
)
from services.ledger.store.load import Wanted
from shared import ids


def wanted(operations: Sequence[Operation], *, clock_offset: timedelta) -> Wanted:
    """What is to be read for these operations."""
    keyed = list(_keyed(operations))
    opening = sorted({each.tenant_id for each in keyed if isinstance(each, Grant)})
    return Wanted(
        tenants=sorted({operation.tenant_id for operation in operations}),
        opening=[(tenant_id, ids.new_id("acc")) for tenant_id in opening],
        keys=[(each.tenant_id, each.idempotency_key) for each in keyed],
        clock_offset=clock_offset,
        hold_ids=[
            (each.tenant_id, each.hold_id)
            for each in keyed
            if isinstance(each, CaptureHold | VoidHold | ExtendHold)
        ],
        references=[
            (each.tenant_id, each.kind, each.reference_id)
            for each in keyed
            if isinstance(each, Grant | Revoke | Restore)
        ],
        granted=[(each.tenant_id, each.grant_reference_id) for each in keyed if isinstance(each, Revoke)],
        revoked=[(each.tenant_id, each.revoke_reference_id) for each in keyed if isinstance(each, Restore)],
        spent=sorted({(each.tenant_id, each.transaction_id) for each in keyed if isinstance(each, Refund)}),
        mirrors=sorted({each.tenant_id for each in keyed if isinstance(each, RebuildMirrors)}),
        limits=sorted({(each.tenant_id, key) for each in keyed for key in _limit_keys(each)}),
    )


def _keyed(operations: Sequence[Operation]) -> list[Keyed]:
    found: list[Keyed] = []
    for operation in operations:
        if isinstance(operation, Group):
            found += operation.debits
        elif not isinstance(operation, Settle):
            found.append(operation)
    return found


def _limit_keys(operation: Keyed) -> list[str]:
    match operation:
        case Consume() | Release() | Authorize():
            return [key for key, _ in operation.limits]
        case SetUsage():
            return [operation.limit_key]
        case _:
            return []
