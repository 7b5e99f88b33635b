"""For each call with which an operator changes something: how it comes to be due, a right request and a wrong one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from billing.ledger.v1 import ledger_admin_pb2
from billing.subscriptions.v1 import catalog_pb2, subscriptions_admin_pb2
from billing.webhooks.v1 import webhooks_admin_pb2

from shared.errors import Unavailable
from tests.ledger.builders import a_debit
from tests.operators import staging
from tests.subscriptions.conftest import Room
from tests.subscriptions.test_sync import orphan_of, sync
from tests.webhooks.harness import Running, charged, eventually

Fields = dict[str, Any]
NOBODY = "tenant_of_nobody"


@dataclass(frozen=True)
class World:
    """The rooms that operators call, and a tenant of this sample's own."""

    room: Room
    ingress: Running
    scheduler: Any
    write_as: Callable[..., None]
    tenant: str

    def stub(self, room: str) -> Any:
        """The operators' door of a room."""
        return {
            "ledger": self.room.ledger.admin,
            "subscriptions": self.room.admin,
            "webhooks": self.ingress.admin,
            "scheduler": self.scheduler,
        }[room]


@dataclass(frozen=True)
class Sample:
    """`stage` brings it about and answers the request's fields; `wrong` makes of these what is refused."""

    stage: Callable[[World], Awaitable[Fields]]
    wrong: Fields
    of_nobody: bool = False
    makes_something_new: bool = False
    takes_something_away: bool = False
    refused_within: bool = False


async def a_tenant(world: World) -> Fields:
    await world.room.provision(world.tenant)
    return {"tenant_id": world.tenant}


async def credits_to_add(world: World) -> Fields:
    return {**await a_tenant(world), "credits": 7, "reason": "admin.adjustment"}


async def frozen(world: World) -> Fields:
    asked = await a_tenant(world)
    await world.room.ledger.admin.FreezeAccount(
        ledger_admin_pb2.FreezeAccountRequest(
            **asked, idempotency_key="freeze", actor="ravi", reason="a look"
        )
    )
    return asked


async def debited(world: World) -> Fields:
    more = ledger_admin_pb2.AdjustCreditsRequest(
        **await credits_to_add(world), idempotency_key="more", actor="ravi", description="a present"
    )
    await world.room.ledger.admin.AdjustCredits(more)
    debit = await world.room.ledger.service.Debit(a_debit(world.tenant, 5))
    over = ledger_admin_pb2.Overdebit(tenant_id=world.tenant, transaction_id=debit.transaction.id, credits=2)
    return {"overdebits": [over]}


async def mirrors_edited(world: World) -> Fields:
    asked = await a_tenant(world)
    world.write_as(
        "ledger", "UPDATE tenant_credits SET balance = balance + 5 WHERE tenant_id = %s", world.tenant
    )
    return asked


def found_by(name: str) -> Callable[[World], Awaitable[Fields]]:
    async def stage(world: World) -> Fields:
        await a_tenant(world)
        finding = f"fnd_{name}_{world.tenant}"
        world.write_as(
            name,
            "INSERT INTO billing_integrity_reports (id, room, check_type, tenant_id, severity, observed)"
            " VALUES (%s, %s, 'balance_mismatch', %s, 'critical', '{\"off_by\": 5}')",
            finding,
            name,
            world.tenant,
        )
        return {"finding_id": finding}

    return stage


async def task_given_up(world: World) -> Fields:
    await a_tenant(world)
    world.write_as(
        "subscriptions",
        "UPDATE billing_reconciliation_queue SET completed_at = NULL, abandoned_at = now(), attempts = 10"
        " WHERE tenant_id = %s",
        world.tenant,
    )
    [task, *_] = world.room.rows(
        "SELECT id FROM billing_reconciliation_queue WHERE tenant_id = %s ORDER BY id", world.tenant
    )
    return {"task_id": task["id"]}


async def paid_unheard(world: World) -> Fields:
    """The customer has paid, and nobody has told us."""
    subscription_id = await staging.pending(world.room, world.tenant)
    world.room.sandbox.act(f"subscriptions/{subscription_id}/pay", method="card")
    return {"tenant_id": world.tenant}


async def orphaned(world: World) -> Fields:
    asked = await a_tenant(world)
    orphan = orphan_of(world.room, world.tenant)
    await sync(world.room, world.tenant)
    return {**asked, "subscription_id": orphan}


async def paid(world: World) -> Fields:
    await staging.paid(world.room, world.tenant)
    [payment] = world.room.rows("SELECT * FROM payments WHERE tenant_id = %s", world.tenant)
    return {"tenant_id": world.tenant, "payment_id": payment["id"], "amount_paise": 10_000}


async def more_seats(world: World) -> Fields:
    limit = catalog_pb2.Limit(key="seats", value=7)
    return {**await a_tenant(world), "service_code": "platform", "limit": limit}


async def seats_given(world: World) -> Fields:
    asked = subscriptions_admin_pb2.SetOverrideRequest(
        **await more_seats(world), idempotency_key="seats", actor="ravi", reason="a present"
    )
    given = await world.room.admin.SetOverride(asked)
    return {"tenant_id": world.tenant, "override_id": given.override.override_id}


async def catalogue_edited(world: World) -> Fields:
    world.room.change("UPDATE plans SET price_monthly_paise = 100 WHERE id = 'pro'")
    return {}


async def applied(world: World) -> Fields:
    await world.ingress.post(charged(world.tenant))
    return {"id": await _event(world, "applied")}


async def dead(world: World) -> Fields:
    async def away(_request: Any) -> None:
        raise Unavailable("later")

    world.ingress.subscriptions.before = away
    try:
        await world.ingress.post(charged(world.tenant))
        await _event(world, "dead")
    finally:
        world.ingress.subscriptions.before = None
    asked = webhooks_admin_pb2.ListDeadLettersRequest(tenant_id=world.tenant)
    [letter] = (await world.ingress.admin.ListDeadLetters(asked)).dead_letters
    return {"dead_letters": webhooks_admin_pb2.DeadLetterIds(ids=[letter.id])}


async def _event(world: World, outcome: str) -> str:
    async def ended() -> str | None:
        rows = await world.ingress.rows(
            "SELECT id FROM webhook_events WHERE tenant_id = %s AND outcome = %s", world.tenant, outcome
        )
        return rows[0]["id"] if rows else None

    found: str = await eventually(ended)
    return found


async def a_job(world: World) -> Fields:
    return {"job": "settle_expired"}


async def paused(world: World) -> Fields:
    world.write_as("scheduler", "UPDATE jobs SET paused = true WHERE name = 'settle_expired'")
    return {"job": "settle_expired"}


async def another_minute(world: World) -> Fields:
    return {"job": "settle_expired", "schedule": "*/2 * * * *", "deadline_seconds": 40}


UNKNOWN_TENANT: Fields = {"tenant_id": NOBODY}
NO_DEBIT: Fields = {
    "overdebits": [ledger_admin_pb2.Overdebit(tenant_id=NOBODY, transaction_id="txn_none", credits=2)]
}
NO_LETTER: Fields = {"dead_letters": webhooks_admin_pb2.DeadLetterIds(ids=["dead_none"])}
SAMPLES: dict[str, Sample] = {
    "ledger.AdjustCredits": Sample(credits_to_add, {"credits": -(10**9)}),
    "ledger.ResolveFinding": Sample(found_by("ledger"), {"finding_id": "fnd_none"}),
    "ledger.FreezeAccount": Sample(a_tenant, UNKNOWN_TENANT),
    "ledger.UnfreezeAccount": Sample(frozen, UNKNOWN_TENANT),
    "ledger.RebuildMirrors": Sample(mirrors_edited, UNKNOWN_TENANT),
    "ledger.RefundOverdebits": Sample(debited, NO_DEBIT, refused_within=True),
    "subscriptions.RebuildEntitlements": Sample(a_tenant, UNKNOWN_TENANT),
    "subscriptions.RetryReconciliationTask": Sample(task_given_up, {"task_id": "tsk_none"}),
    "subscriptions.ResolveReconciliationTask": Sample(task_given_up, {"task_id": "tsk_none"}),
    "subscriptions.PromotePendingChange": Sample(paid_unheard, UNKNOWN_TENANT),
    "subscriptions.CancelOrphanSubscription": Sample(orphaned, UNKNOWN_TENANT, makes_something_new=True),
    "subscriptions.RefundPayment": Sample(paid, UNKNOWN_TENANT),
    "subscriptions.SetOverride": Sample(more_seats, UNKNOWN_TENANT, makes_something_new=True),
    "subscriptions.RemoveOverride": Sample(seats_given, UNKNOWN_TENANT, takes_something_away=True),
    "subscriptions.ApplyCatalog": Sample(catalogue_edited, {"actor": ""}, of_nobody=True),
    "subscriptions.ResolveFinding": Sample(found_by("subscriptions"), {"finding_id": "fnd_none"}),
    "webhooks.ReplayEvents": Sample(applied, {"id": "evt_none"}),
    "webhooks.RequeueDeadLetters": Sample(dead, NO_LETTER),
    "webhooks.DiscardDeadLetters": Sample(dead, NO_LETTER),
    "scheduler.RunJob": Sample(a_job, {"job": "nobody"}, of_nobody=True, makes_something_new=True),
    "scheduler.PauseJob": Sample(a_job, {"job": "nobody"}, of_nobody=True),
    "scheduler.ResumeJob": Sample(paused, {"job": "nobody"}, of_nobody=True),
    "scheduler.SetJobSchedule": Sample(another_minute, {"schedule": "never"}, of_nobody=True),
}
