"""Webhooks fall silent for weeks; one comparison later nobody can tell."""

from __future__ import annotations

from typing import Any

import pytest

from services.subscriptions.actions import audit
from services.subscriptions.rules import findings as rules
from tests.subscriptions.conftest import Room
from tests.subscriptions.test_audit import findings, run_audit
from tests.subscriptions.test_sync import bought, state, sync


async def happen(room: Room, tenant: str, path: str, *, told: bool, **body: Any) -> None:
    """Something at the provider, of which the room hears or not."""
    for delivery in room.sandbox.act(path, deliver=told, **body):
        if told:
            await room.deliver(delivery)


async def live_through(room: Room, tenant: str, story: list[str], *, told: bool) -> tuple[Any, ...]:
    """One tenant's life; answers how it stands at the end."""
    subscription_id = await bought(room, tenant)
    await happen(room, tenant, f"subscriptions/{subscription_id}/pay", told=told, method="card")
    for number, what in enumerate(story):
        match what:
            case "renewal":
                await happen(room, tenant, f"subscriptions/{subscription_id}/charge", told=told)
            case "failure":
                await happen(room, tenant, f"subscriptions/{subscription_id}/fail", told=told)
            case "recovery":
                await happen(room, tenant, f"subscriptions/{subscription_id}/pay", told=told, method="card")
            case "pack":
                order = await room.buy_credits(tenant, pack="small", key=f"pack-{number}")
                await happen(room, tenant, f"orders/{order.order_id}/pay", told=told, method="upi")
            case "refund":
                invoices = room.sandbox.sdk.invoice.all({"subscription_id": subscription_id})["items"]
                payment_id = invoices[-1]["payment_id"]  # of the first cycle
                await happen(room, tenant, f"payments/{payment_id}/refund", told=told, amount=100_000)
                [refund] = room.sandbox.sdk.payment.fetch_multiple_refund(payment_id)["items"]
                await happen(room, tenant, f"refunds/{refund['id']}/process", told=told)
            case "cancellation":
                path = f"subscriptions/{subscription_id}/cancel"
                await happen(room, tenant, path, told=told, by="customer")
    for key in ("1", "2"):  # what a first comparison brings may be about to be given back
        if not told:
            await sync(room, tenant, key=key)
    await room.reconcile()
    return await state(room, tenant)


STORIES = (
    ["renewal", "pack", "renewal"],
    ["failure", "recovery", "refund", "pack"],
    ["renewal", "refund", "failure"],
    ["pack", "cancellation", "pack"],
)


@pytest.mark.parametrize("number", range(len(STORIES)))
async def test_after_silence_a_tenant_stands_where_a_tenant_stands_who_was_told(
    room: Room, tenant: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(audit, "SECOND_LOOK_AFTER_SECONDS", 0.0)
    story = STORIES[number]

    told = await live_through(room, f"{tenant}_told", story, told=True)
    silent = await live_through(room, f"{tenant}_silent", story, told=False)

    # Fewer steps may lead to the same limits: versions count the steps.
    assert silent[:3] + silent[4:] == told[:3] + told[4:]
    await run_audit(room)
    for each in (f"{tenant}_told", f"{tenant}_silent"):
        assert (rules.OURS | rules.WITH_LEDGER) & findings(room, each).keys() == set()
    assert (await sync(room, f"{tenant}_silent", key="3")).differences == 0
