"""A replay mends what was ignored for a cause that is gone, and changes nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import psycopg
from psycopg.rows import dict_row

from services.webhooks.rules.delivery import Decision
from tests.ledger.conftest import Travel
from tests.subscriptions.conftest import MovableClock, Room
from tests.subscriptions.life import Life

CREDITS = 15_000
BOOKS = {
    "subscriptions": (
        *("subscriptions", "provider_subscriptions", "checkout_intents", "credit_pack_purchases", "payments"),
        *("credit_grants", "grant_revocations", "invoices", "billing_refunds", "billing_disputes"),
        *("billing_reconciliation_queue", "billing_notifications"),
    ),
    "ops": ("billing_integrity_reports",),
    "ledger": (
        *("tenant_credits", "credit_buckets", "credit_transactions", "credit_entries", "credit_revocations"),
        *("tenant_services", "tenant_usage"),
    ),
}


@dataclass(frozen=True)
class Recorder(Room):
    """The room, and every delivery that it was told."""

    told: list[dict[str, Any]] = field(default_factory=list)

    async def deliver(self, delivery: dict[str, Any], *, mode: str = "test") -> Decision:
        self.told.append(delivery)
        return await super().deliver(delivery, mode=mode)


def books(room: Room, tenant: str) -> dict[str, list[dict[str, Any]]]:
    """Every row of a tenant in both rooms, as it stands: balances, lots, invoices, purchases, tasks, findings."""
    with psycopg.connect(room.admin_url, autocommit=True, row_factory=dict_row) as db:
        return {
            table: sorted(
                db.execute(f"SELECT * FROM {schema}.{table} WHERE tenant_id = %s", (tenant,)).fetchall(),
                key=repr,
            )
            for schema, tables in BOOKS.items()
            for table in tables
        }


def decided(room: Room, deliveries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was decided about them; whom an ignored one concerned may be found out later."""
    return room.rows(
        "SELECT id, outcome, reason, processed_at FROM processed_payment_events"
        " WHERE body_sha256 = ANY(%s) ORDER BY id",
        [hashlib.sha256(each["body"]).hexdigest() for each in deliveries],
    )


async def lived(room: Recorder, tenant: str, travel: Travel) -> Life:
    """A pack, an upgrade in the middle of a month, renewals, a refund in part, a lost dispute, a cancellation."""
    life = Life(room, tenant, travel)
    await life.subscribe("starter")
    pack = await room.buy_credits(tenant)
    await life.tell(room.sandbox.act(f"orders/{pack.order_id}/pay", method="upi"))
    await life.pass_time(days=11)
    await life.spend(300)
    changed = await life.change("pro", token=(await life.preview("pro")).quote_token)
    dearer = changed.checkout.subscription_id
    await life.act(dearer, "pay", method="card")
    await life.reconcile()
    await life.hear()
    await life.pass_time(days=32)
    newest = life.payments()[-1]["id"]
    await life.refund(newest, 50_000)
    await life.hear()
    disputed = room.sandbox.act(f"payments/{newest}/dispute", amount=20_000)
    [dispute] = {each["parsed"]["payload"]["dispute"]["entity"]["id"] for each in disputed}
    await life.tell([*disputed, *room.sandbox.act(f"disputes/{dispute}/lost")])
    await life.pass_time(days=3)
    await life.cancel()
    await life.reconcile()
    await life.tell(room.sandbox.act("tick", deliver=False))
    return life


async def test_replaying_a_whole_life_in_any_order_leaves_every_row_as_it_was(
    room: Room, tenant: str, travel: Travel
) -> None:
    recorder = Recorder(**vars(room))
    life = await lived(recorder, tenant, travel)
    ours = {each["body"]: each for each in recorder.told if tenant.encode() in each["body"]}
    payments = {row["id"] for row in life.payments()}
    ours |= {e["body"]: e for e in recorder.told if any(p.encode() in e["body"] for p in payments)}
    before, verdicts, credits = books(room, tenant), decided(room, ours.values()), await life.credits()
    assert (len(before["payments"]), len(before["credit_grants"]) >= 4) == (4, True)
    assert all(before[name] for name in ("billing_refunds", "billing_disputes", "grant_revocations"))
    assert len(before["invoices"]) >= 6

    for seed in range(4):
        told = [*ours.values(), *ours.values()]
        random.Random(f"{tenant}{seed}").shuffle(told)
        for delivery in told:
            assert (await room.deliver(delivery)).outcome in ("duplicate", "ignored")
    assert await life.credits() == credits
    travel.forward(days=80)
    await asyncio.gather(*(room.deliver(delivery) for delivery in ours.values() for _ in range(2)))

    assert decided(room, ours.values()) == verdicts
    after = books(room, tenant)
    assert {name: rows for name, rows in after.items() if rows != before[name]} == {}


async def test_what_was_ignored_stays_without_effect_while_its_cause_holds(room: Room, tenant: str) -> None:
    """The finding that it opened and a person closed stays closed."""
    await room.provision(tenant)
    order = await room.buy_credits(tenant)
    room.change(
        "UPDATE credit_pack_purchases SET amount_paise = amount_paise + 100 WHERE tenant_id = %s", tenant
    )
    deliveries = room.sandbox.act(f"orders/{order.order_id}/pay", method="upi")
    first = [await room.deliver(delivery) for delivery in deliveries]
    room.change(
        "UPDATE billing_integrity_reports SET resolved_at = now(), resolved_by = 'asha' WHERE tenant_id = %s",
        tenant,
    )
    before, verdicts = books(room, tenant), decided(room, deliveries)

    again = [await room.deliver(delivery) for delivery in deliveries for _ in range(3)]

    assert "amount_mismatch" in {decision.reason for decision in first}
    assert {decision.outcome for decision in again} == {"ignored"}
    assert {decision.reason for decision in again} == {decision.reason for decision in first}
    assert (books(room, tenant), decided(room, deliveries)) == (before, verdicts)


async def test_a_pack_ignored_by_mistake_is_credited_once_when_it_is_replayed(
    room: Room, tenant: str
) -> None:
    await room.provision(tenant)
    order = await room.buy_credits(tenant)
    [bought] = room.rows("SELECT amount_paise FROM credit_pack_purchases WHERE tenant_id = %s", tenant)
    room.change(
        "UPDATE credit_pack_purchases SET amount_paise = amount_paise + 100 WHERE tenant_id = %s", tenant
    )
    deliveries = room.sandbox.act(f"orders/{order.order_id}/pay", method="upi")
    for delivery in deliveries:
        await room.deliver(delivery)
    assert (await room.balance(tenant))["permanent"] == 0

    room.change(
        "UPDATE credit_pack_purchases SET amount_paise = %s WHERE tenant_id = %s",
        bought["amount_paise"],
        tenant,
    )
    told = await asyncio.gather(*(room.deliver(delivery) for delivery in deliveries * 4))

    assert [decision.outcome for decision in told].count("applied") == 1
    assert (await room.balance(tenant))["permanent"] == order.credits
    assert len(room.rows("SELECT 1 FROM invoices WHERE tenant_id = %s", tenant)) == 1
    [row] = room.rows(
        "SELECT outcome, reason, decided_again_at > processed_at AS later FROM processed_payment_events"
        " WHERE tenant_id = %s AND outcome = 'applied'",
        tenant,
    )
    assert row == {"outcome": "applied", "reason": "granted", "later": True}
    before = books(room, tenant)
    assert {(await room.deliver(delivery)).outcome for delivery in deliveries} <= {"duplicate", "ignored"}
    assert books(room, tenant) == before


async def test_a_subscription_that_nobody_knew_is_applied_once_when_it_is_replayed(
    room: Room, tenant: str
) -> None:
    """Its intent was missing, as after a restore; whoever replays may do so twice at once."""
    await room.provision(tenant)
    checkout = (await room.checkout(tenant)).checkout
    deliveries = room.sandbox.act(f"subscriptions/{checkout.subscription_id}/pay", method="card")
    room.change("UPDATE checkout_intents SET id = 'lost_' || id WHERE tenant_id = %s", tenant)
    room.change("DELETE FROM provider_subscriptions WHERE tenant_id = %s", tenant)
    lost = [await room.deliver(delivery) for delivery in deliveries]
    assert {decision.outcome for decision in lost} == {"ignored"}
    assert (await room.current(tenant)).plan_code == "free"

    room.change("UPDATE checkout_intents SET id = replace(id, 'lost_', '') WHERE tenant_id = %s", tenant)
    told = await asyncio.gather(*(room.deliver(delivery) for delivery in deliveries * 3))

    assert (await room.current(tenant)).plan_code == "pro"
    assert await room.balance(tenant) == {"subscription": CREDITS, "permanent": 0}
    assert len(room.rows("SELECT 1 FROM payments WHERE tenant_id = %s", tenant)) == 1
    assert len(room.rows("SELECT 1 FROM invoices WHERE tenant_id = %s", tenant)) == 1
    assert len(room.rows("SELECT 1 FROM credit_grants WHERE tenant_id = %s", tenant)) == 1
    assert {decision.tenant_id for decision in told if decision.outcome != "ignored"} == {tenant}


async def test_credits_of_what_is_mended_after_its_period_live_from_then_on(room: Room, tenant: str) -> None:
    """By the time of its receipt they would be dead on arrival, and the ledger would refuse them for good."""
    await room.provision(tenant)
    checkout = (await room.checkout(tenant)).checkout
    deliveries = room.sandbox.act(f"subscriptions/{checkout.subscription_id}/pay", method="card")
    received = room.clock()
    room.change("UPDATE checkout_intents SET id = 'lost_' || id WHERE tenant_id = %s", tenant)
    room.change("DELETE FROM provider_subscriptions WHERE tenant_id = %s", tenant)
    for delivery in deliveries:
        await room.deliver(delivery)
    room.change("UPDATE checkout_intents SET id = replace(id, 'lost_', '') WHERE tenant_id = %s", tenant)

    room.clock.ahead = timedelta(days=45)
    back_then = replace(room, clock=MovableClock())
    for delivery in deliveries:
        await back_then.deliver(delivery)

    [grant] = room.rows("SELECT * FROM credit_grants WHERE tenant_id = %s", tenant)
    assert grant["expires_at"] > room.clock()
    assert (await room.balance(tenant))["subscription"] == CREDITS
    [paid] = room.rows("SELECT received_at FROM payments WHERE tenant_id = %s", tenant)
    assert paid["received_at"] - received < timedelta(minutes=1)
