"""What the writers of a fault test ask for, as a table: adding an operation is one line and its function."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any

from billing.ledger.v1 import ledger_admin_pb2 as admin_pb
from billing.ledger.v1 import ledger_funding_pb2 as funding_pb
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from shared import clock
from tests.faults.journal import Answer, Call

REMEMBERED_FOR_REFERENCE = 40
COUNTED = "blog.posts"
UNCOUNTED = "blog.storage_mb"


@dataclass
class World:
    """What the writers know: their tenants, and what they were told of that can be referred to."""

    tenants: Sequence[str]
    holds: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    spendings: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    grants: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    revocations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    numbers: count[int] = field(default_factory=lambda: count(1))

    def next_call(self, rng: random.Random) -> Call:
        """The next thing that a writer asks for; the first tenant is busier than the others."""
        tenant = self.tenants[0] if rng.random() < 0.2 else rng.choice(self.tenants)
        while True:
            operation = rng.choices(MIX, [each.weight for each in MIX])[0]
            request = operation.make(self, rng, tenant, f"{operation.name}-{next(self.numbers)}")
            if request is not None:
                return Call(operation.name, operation.rpc, request)

    def learn(self, answer: Answer) -> None:
        """What was booked can be referred to by what is asked next."""
        transaction = answer.transaction
        if transaction is None:
            return
        tenant = transaction.tenant_id
        match transaction.kind:
            case types.TRANSACTION_KIND_HOLD:
                _remember(self.holds[tenant], transaction.hold_id)
            case types.TRANSACTION_KIND_DEBIT | types.TRANSACTION_KIND_CAPTURE:
                _remember(self.spendings[tenant], transaction.id)
            case types.TRANSACTION_KIND_GRANT:
                _remember(self.grants[tenant], transaction.reference_id)
            case types.TRANSACTION_KIND_REVOKE:
                _remember(self.revocations[tenant], transaction.reference_id)


def entitlements(tenant: str) -> funding_pb.SetEntitlementsRequest:
    """One limit that is counted after, hard and soon reached, and one that is not."""
    limits = [types.Limit(key="posts", value=30), types.Limit(key="storage_mb", unlimited=True)]
    return funding_pb.SetEntitlementsRequest(
        tenant_id=tenant,
        idempotency_key="entitlements:1",
        version=1,
        plan_code="basic",
        services=[types.ServiceEntitlement(service_code="blog", enabled=True, limits=limits)],
    )


def _remember(known: list[str], new: str) -> None:
    known.append(new)
    del known[:-REMEMBERED_FOR_REFERENCE]


Make = Callable[[World, random.Random, str, str], Message | None]


@dataclass(frozen=True)
class Operation:
    """One line of the mix; `make` answers None when there is nothing to ask about yet."""

    name: str
    weight: int
    rpc: str
    make: Make


def a_debit(tenant: str, key: str, credits: int, **more: Any) -> pb.DebitRequest:
    return pb.DebitRequest(
        tenant_id=tenant, idempotency_key=key, credits=credits, reason="blog.publish", **more
    )


def a_grant(tenant: str, key: str, credits: int, **more: Any) -> funding_pb.GrantCreditsRequest:
    values = {"bucket": types.BUCKET_PERMANENT, **more}
    return funding_pb.GrantCreditsRequest(
        tenant_id=tenant,
        idempotency_key=key,
        credits=credits,
        reference_id=f"test:{key}",
        reason="credit_pack",
        **values,
    )


def _debit(_: World, rng: random.Random, tenant: str, key: str) -> Message:
    return a_debit(tenant, key, rng.randint(1, 9), metadata={"post": key})


def _beyond(_: World, rng: random.Random, tenant: str, key: str) -> Message:
    return a_debit(tenant, key, rng.randint(10**6, 10**7))


def _as_much_as_there_is(_: World, rng: random.Random, tenant: str, key: str) -> Message:
    return a_debit(tenant, key, rng.randint(10, 60), min_credits=1)


def _on_condition(_: World, rng: random.Random, tenant: str, key: str) -> Message:
    return a_debit(tenant, key, 1, if_seq=rng.randint(0, 200))


def _grant(_: World, rng: random.Random, tenant: str, key: str) -> Message:
    return a_grant(tenant, key, rng.randint(10, 60))


def _plan(_: World, rng: random.Random, tenant: str, key: str) -> Message:
    ends_at = clock.now() + timedelta(days=rng.randint(1, 30))
    return a_grant(tenant, key, rng.randint(10, 60), bucket=types.BUCKET_SUBSCRIPTION, expires_at=ends_at)


def _hold(_: World, rng: random.Random, tenant: str, key: str) -> Message:
    ttl = Duration(seconds=1 if rng.random() < 0.3 else 3600)
    return pb.PlaceHoldRequest(
        tenant_id=tenant, idempotency_key=key, credits=rng.randint(1, 30), ttl=ttl, reason="media.transcode"
    )


def _capture(world: World, rng: random.Random, tenant: str, key: str) -> Message | None:
    if not world.holds[tenant]:
        return None
    more_follows = rng.random() < 0.4  # then there must be something to capture
    return pb.CaptureHoldRequest(
        tenant_id=tenant,
        idempotency_key=key,
        hold_id=rng.choice(world.holds[tenant]),
        credits=rng.randint(1 if more_follows else 0, 35),
        more_follows=more_follows,
        over_capture_policy=rng.choice(pb.OverCapturePolicy.values()),
    )


def _void(world: World, rng: random.Random, tenant: str, key: str) -> Message | None:
    if not world.holds[tenant]:
        return None
    return pb.VoidHoldRequest(tenant_id=tenant, idempotency_key=key, hold_id=rng.choice(world.holds[tenant]))


def _extend(world: World, rng: random.Random, tenant: str, key: str) -> Message | None:
    if not world.holds[tenant]:
        return None
    hold, ttl = rng.choice(world.holds[tenant]), Duration(seconds=rng.randint(1, 3600))
    return pb.ExtendHoldRequest(tenant_id=tenant, idempotency_key=key, hold_id=hold, ttl=ttl)


def _refund(world: World, rng: random.Random, tenant: str, key: str) -> Message | None:
    if not world.spendings[tenant]:
        return None
    request = pb.RefundDebitRequest(
        tenant_id=tenant,
        idempotency_key=key,
        transaction_id=rng.choice(world.spendings[tenant]),
        expired_policy=rng.choice(pb.ExpiredPolicy.values()),
        reason="blog.publish_failed",
    )
    if rng.random() < 0.6:
        request.credits = rng.randint(1, 4)
    return request


def _batch(world: World, rng: random.Random, tenant: str, key: str) -> Message:
    """Items of several tenants, some of them in a group, and now and then one that breaks its group."""
    items = []
    for number in range(rng.randint(2, 10)):
        grouped = rng.random() < 0.4
        owner = tenant if grouped else rng.choice(world.tenants)
        credits = 10**7 if rng.random() < 0.07 else rng.randint(1, 5)
        debit = a_debit(owner, f"{key}-{number}", credits)
        items.append(pb.BatchDebitItem(debit=debit, group_id="together" if grouped else ""))
    return pb.BatchDebitRequest(items=items)


def _adjust(_: World, rng: random.Random, tenant: str, key: str) -> Message:
    return admin_pb.AdjustCreditsRequest(
        tenant_id=tenant,
        idempotency_key=key,
        credits=rng.choice((-1, 1)) * rng.randint(1, 20),
        reason="admin.adjustment",
        description="a ticket and a sentence",
        actor="operator",
    )


def _revoke(world: World, rng: random.Random, tenant: str, key: str) -> Message | None:
    if not world.grants[tenant]:
        return None
    return funding_pb.RevokeGrantRequest(
        tenant_id=tenant,
        idempotency_key=key,
        grant_reference_id=rng.choice(world.grants[tenant]),
        credits=rng.randint(1, 30),
        reference_id=f"test:{key}",
        reason="payment.refund",
    )


def _restore(world: World, rng: random.Random, tenant: str, key: str) -> Message | None:
    """Each revocation once: a second time is no repeat and has nothing to restore."""
    if not world.revocations[tenant]:
        return None
    return funding_pb.RestoreGrantRequest(
        tenant_id=tenant,
        idempotency_key=key,
        revoke_reference_id=world.revocations[tenant].pop(),
        reference_id=f"test:{key}",
    )


def _consume(_: World, rng: random.Random, tenant: str, key: str) -> Message:
    return pb.ConsumeLimitsRequest(tenant_id=tenant, idempotency_key=key, limits=_amounts(rng))


def _release(_: World, rng: random.Random, tenant: str, key: str) -> Message:
    limits = [pb.LimitAmount(limit_key=UNCOUNTED, amount=rng.randint(1, 9))]
    return pb.ReleaseLimitsRequest(tenant_id=tenant, idempotency_key=key, limits=limits)


def _set_usage(_: World, rng: random.Random, tenant: str, key: str) -> Message:
    return pb.SetUsageRequest(
        tenant_id=tenant, idempotency_key=key, limit_key=UNCOUNTED, used=rng.randint(0, 99)
    )


def _authorize(_: World, rng: random.Random, tenant: str, key: str) -> Message:
    request = pb.AuthorizeRequest(
        tenant_id=tenant, idempotency_key=key, limits=_amounts(rng), reason="blog.publish"
    )
    chance = rng.random()
    if chance < 0.4:
        request.debit_credits = rng.randint(1, 9)
    elif chance < 0.7:
        request.hold_credits = rng.randint(1, 9)
        request.hold_ttl.FromSeconds(3600)
    return request


def _amounts(rng: random.Random) -> list[pb.LimitAmount]:
    return [
        pb.LimitAmount(limit_key=COUNTED, amount=rng.randint(1, 3)),
        pb.LimitAmount(limit_key=UNCOUNTED, amount=1),
    ]


MIX = (
    Operation("debit", 50, "Debit", _debit),
    Operation("beyond", 6, "Debit", _beyond),
    Operation("drain", 2, "Debit", _as_much_as_there_is),
    Operation("condition", 4, "Debit", _on_condition),
    Operation("batch", 8, "BatchDebit", _batch),
    Operation("grant", 6, "GrantCredits", _grant),
    Operation("plan", 4, "GrantCredits", _plan),
    Operation("hold", 10, "PlaceHold", _hold),
    Operation("capture", 9, "CaptureHold", _capture),
    Operation("void", 3, "VoidHold", _void),
    Operation("extend", 2, "ExtendHold", _extend),
    Operation("refund", 6, "RefundDebit", _refund),
    Operation("adjust", 2, "AdjustCredits", _adjust),
    Operation("revoke", 3, "RevokeGrant", _revoke),
    Operation("restore", 2, "RestoreGrant", _restore),
    Operation("consume", 4, "ConsumeLimits", _consume),
    Operation("release", 1, "ReleaseLimits", _release),
    Operation("usage", 1, "SetUsage", _set_usage),
    Operation("authorize", 4, "Authorize", _authorize),
)
