"""What the writers of a fault test ask for, as a table: adding an operation is one line and its function."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any

from billing.ledger.v1 import ledger_funding_pb2 as funding_pb
from billing.ledger.v1 import ledger_pb2 as pb
from billing.ledger.v1 import types_pb2 as types
from google.protobuf.message import Message

from shared import clock
from tests.faults.journal import Answer, Call, Told

REMEMBERED_FOR_REFERENCE = 40


@dataclass
class World:
    """What the writers know: their tenants, and what they were told of that can be referred to."""

    tenants: Sequence[str]
    holds: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    spendings: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    numbers: count[int] = field(default_factory=lambda: count(1))

    def next_call(self, rng: random.Random) -> Call:
        """The next thing that a writer asks for; the first tenant is busier than the others."""
        tenant = self.tenants[0] if rng.random() < 0.2 else rng.choice(self.tenants)
        while True:
            operation = rng.choices(MIX, [each.weight for each in MIX])[0]
            request = operation.make(self, rng, tenant, f"{operation.name}-{next(self.numbers)}")
            if request is not None:
                return Call(operation.name, operation.rpc, request)

    def learn(self, call: Call, answer: Answer) -> None:
        transaction = answer.transaction
        if answer.told is not Told.OK or transaction is None:
            return
        if transaction.kind == types.TRANSACTION_KIND_HOLD:
            _remember(self.holds[transaction.tenant_id], transaction.hold_id)
        elif transaction.kind in (types.TRANSACTION_KIND_DEBIT, types.TRANSACTION_KIND_CAPTURE):
            _remember(self.spendings[transaction.tenant_id], transaction.id)


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


MIX = (
    Operation("debit", 50, "Debit", _debit),
    Operation("beyond", 6, "Debit", _beyond),
    Operation("drain", 2, "Debit", _as_much_as_there_is),
    Operation("condition", 4, "Debit", _on_condition),
    Operation("grant", 5, "GrantCredits", _grant),
    Operation("plan", 3, "GrantCredits", _plan),
)
