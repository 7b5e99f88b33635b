"""After a deployment, and runbooks 0, 3 and 5: what is wrong with billing, if anything."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from billing.subscriptions.v1 import subscriptions_pb2
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from services.scheduler import actions as scheduler
from services.scheduler.clients import Maintenance
from shared import clock
from shared.database import transaction
from shared.errors import BillingError
from shared.ops import store as ops
from shared.rpc.client import open_channel
from tests.conftest import Database
from tests.ledger.conftest import SECRETS
from tests.operators import staging
from tests.operators.conftest import Operator
from tests.subscriptions.conftest import Room
from tests.webhooks.harness import Running, Subscriptions, room_settings, sample, serving

WriteAs = Callable[..., None]
BODY = b'{"event":"subscription.charged"}'


@pytest.fixture
async def ingress(database: Database, secrets: Any) -> AsyncIterator[Running]:
    """The webhooks room's door, which writes down who knocked with a wrong signature."""
    settings = room_settings(database.url("webhooks_rw"), secrets, "127.0.0.1:1")
    async with await psycopg.AsyncConnection.connect(database.admin_url, autocommit=True) as db:
        await db.execute("SET search_path = webhooks, ops")
        async with serving(settings, Subscriptions(), db, deliver=False) as running:
            yield running


async def forge(ingress: Running, times: int) -> None:
    """Deliveries that somebody signed with a secret of his own."""
    before = len(await ingress.rows("SELECT 1 FROM billing_signature_failures"))
    for _ in range(times):
        answer = await ingress.post(BODY, secret="guessed", user_agent="forger/1")
        assert answer.status_code == 401
    deadline = time.monotonic() + 5
    while len(await ingress.rows("SELECT 1 FROM billing_signature_failures")) < before + times:
        assert time.monotonic() < deadline, "refused signatures are written beside the request, but soon"


async def verify_wrongly(room: Room, tenant: str, number: int = 0) -> str:
    """A browser that brings back a signature which is not the provider's; answers the payment that it named."""
    payment_id = "pay_" + hashlib.sha256(f"{tenant}{number}".encode()).hexdigest()[:14]
    begun = await room.checkout(tenant, key="buy-pro")
    with pytest.raises(BillingError) as refused:
        await room.product.VerifyPayment(
            subscriptions_pb2.VerifyPaymentRequest(
                tenant_id=tenant,
                idempotency_key=f"verify-{payment_id}",
                intent_id=begun.checkout.intent_id,
                payment_id=payment_id,
                signature="0" * 64,
            )
        )
    assert refused.value.reason == "SIGNATURE_MISMATCH"
    return payment_id


def test_ten_minutes_after_a_deployment(fresh: Operator) -> None:
    tables = [row["table_name"] for row in fresh.run("deployed_tables").rows]
    assert sorted(tables) == [
        *("billing_integrity_reports", "billing_notifications", "billing_reconciliation_queue"),
        *("billing_signature_failures", "rate_limit_buckets"),
    ]
    columns = [row["column_name"] for row in fresh.run("deployed_credit_columns").rows]
    assert len(columns) == len(set(columns))
    assert {"subscription_balance", "subscription_expires_at", "permanent_balance"} <= set(columns)
    columns = [row["column_name"] for row in fresh.run("deployed_pending_columns").rows]
    assert sorted(columns) == ["past_due_since", "pending_billing_cycle", "pending_razorpay_subscription_id"]
    assert fresh.run("deployed_first_tick").row == {"max": None}


def test_the_signals_of_a_healthy_house_are_clean(fresh: Operator) -> None:
    assert fresh.run("runbook_0_1").row == {"pending": 0, "abandoned": 0}
    for signal in ("runbook_0_2", "runbook_0_3", "runbook_0_4"):
        assert fresh.run(signal).rows == []


async def test_a_first_payment_event_and_a_first_run_of_a_job_show_that_time_passes(
    room: Room, operator: Operator, engines: dict[str, AsyncEngine], tenant: str
) -> None:
    began = datetime.now(UTC)
    await staging.paid(room, tenant)
    assert operator.run("deployed_first_tick").row["max"] >= began

    await scheduler.prepare(engines["scheduler"])
    run, _ = await scheduler.claim_by_hand(
        engines["scheduler"],
        job="settle_expired",
        idempotency_key=tenant,
        dry_run=False,
        owner="test",
        actor="operator",
        reason="to see it run",
        now=clock.now(),
    )
    async with open_channel(room.ledger.address, SecretStr(SECRETS["room_secret"])) as channel:
        assert await scheduler.execute(
            engines["scheduler"], Maintenance({"ledger": channel}), run, clock=clock.now
        )

    [job] = [row for row in operator.run("deployed_job_runs").rows if row["job"] == "settle_expired"]
    assert job["last_finished_at"] >= began
    assert job["failed"] == 0


async def test_0_1_counts_what_is_owed_and_what_was_given_up(
    room: Room, operator: Operator, write_as: WriteAs, tenant: str
) -> None:
    before = operator.run("runbook_0_1").row

    await staging.replaced(room, tenant, write_as, fails=1)
    owed = operator.run("runbook_0_1").row
    await staging.replaced(room, f"{tenant}_2", write_as, fails=staging.ABANDONED_AFTER)
    given_up = operator.run("runbook_0_1").row
    await staging.replaced(room, f"{tenant}_3", write_as, fails=0)

    assert owed == {"pending": before["pending"] + 1, "abandoned": before["abandoned"]}
    assert given_up == {"pending": before["pending"] + 2, "abandoned": before["abandoned"] + 1}
    assert operator.run("runbook_0_1").row == given_up


async def test_0_2_counts_open_findings_by_what_they_are_about(
    operator: Operator, engines: dict[str, AsyncEngine], tenant: str
) -> None:
    def counted() -> dict[str, int]:
        return {row["check_type"]: row["count"] for row in operator.run("runbook_0_2").rows}

    check, other = f"balance_mismatch_{tenant}", f"orphan_pending_sub_{tenant}"
    for room, check_type, tenant_id in (
        *(("ledger", check, f"{tenant}_{number}") for number in range(3)),
        ("subscriptions", other, tenant),
    ):
        async with transaction(engines[room]) as db:
            await ops.open_finding(
                db, room=room, check_type=check_type, tenant_id=tenant_id, severity="critical", observed={}
            )
    assert (counted()[check], counted()[other]) == (3, 1)

    async with transaction(engines["subscriptions"]) as db:
        await ops.resolve_finding(
            db, room="subscriptions", check_type=other, tenant_id=tenant, resolved_by="audit"
        )
    assert other not in counted()


async def test_0_3_shows_the_noisiest_of_the_last_hour_first(
    room: Room, operator: Operator, ingress: Running, write_as: WriteAs, tenant: str
) -> None:
    await room.provision(tenant)
    for number in range(3):
        await verify_wrongly(room, tenant, number)
    await forge(ingress, 4)
    write_as(
        "webhooks",
        "INSERT INTO billing_signature_failures (id, room, endpoint, tenant_id, created_at)"
        " SELECT 'sig_old_' || n, 'webhooks', 'webhook', %s, now() - interval '61 minutes'"
        " FROM generate_series(1, 50) n",
        f"{tenant}_old",
    )
    for number in range(12):
        write_as(
            "webhooks",
            "INSERT INTO billing_signature_failures (id, room, endpoint, tenant_id) VALUES (%s, 'webhooks',"
            " 'webhook', %s)",
            f"sig_{tenant}_{number}",
            f"{tenant}_{number}",
        )

    rows = operator.run("runbook_0_3").rows

    assert len(rows) == 10
    assert [row["n"] for row in rows] == sorted((row["n"] for row in rows), reverse=True)
    [own] = [row for row in rows if row["tenant_id"] == tenant]
    assert own == {"endpoint": "/payment/verify", "tenant_id": tenant, "n": 3}
    [nameless] = [row for row in rows if row["tenant_id"] is None]
    assert nameless["endpoint"] == "webhook"
    assert nameless["n"] >= 4
    assert f"{tenant}_old" not in {row["tenant_id"] for row in rows}


async def test_0_4_shows_who_should_have_been_downgraded(
    room: Room, operator: Operator, write_as: WriteAs, tenant: str
) -> None:
    await staging.past_due(room, tenant, write_as, for_days=15.5)
    patient = f"{tenant}_patient"
    await staging.past_due(room, patient, write_as, for_days=13.9)

    answer = operator.run("runbook_0_4")

    [row] = answer.of(tenant)
    assert row["past_due_since"] < datetime.now(UTC) - timedelta(days=15)
    assert float(row["days_past_due"]) == pytest.approx(15.5, abs=0.01)
    assert answer.of(patient) == []


async def test_0_4_forgets_who_paid(room: Room, operator: Operator, write_as: WriteAs, tenant: str) -> None:
    subscription_id = await staging.past_due(room, tenant, write_as, for_days=20)
    assert operator.run("runbook_0_4").of(tenant)

    for delivery in room.sandbox.act(f"subscriptions/{subscription_id}/charge"):
        await room.deliver(delivery)

    assert operator.run("runbook_0_4").of(tenant) == []


async def test_3_1_shows_who_knocked_with_what(
    room: Room, operator: Operator, ingress: Running, write_as: WriteAs, tenant: str
) -> None:
    neighbour = f"{tenant}_neighbour"
    await room.provision(tenant)
    await room.provision(neighbour)
    payment_id = await verify_wrongly(room, tenant)
    await verify_wrongly(room, neighbour)
    await forge(ingress, 2)
    write_as(
        "subscriptions",
        "INSERT INTO billing_signature_failures (id, room, endpoint, tenant_id, created_at)"
        " VALUES (%s, 'subscriptions', '/payment/verify', %s, now() - interval '61 minutes')",
        f"sig_old_{tenant}",
        tenant,
    )

    answer = operator.run("runbook_3_1", ALERT_TENANT=tenant)

    [own] = answer.of(tenant)
    assert (own["endpoint"], own["payload_id"]) == ("/payment/verify", payment_id)
    assert answer.of(neighbour) == []
    nameless = [row for row in answer.rows if row["tenant_id"] is None]
    assert len(nameless) >= 2
    for row in nameless[:2]:
        assert (row["endpoint"], row["remote_ip"], row["user_agent"]) == ("webhook", "127.0.0.1", "forger/1")
        assert row["payload_id"].startswith("sha256:")
    moments = [row["created_at"] for row in answer.rows]
    assert moments == sorted(moments, reverse=True)
    assert len(answer.rows) <= 50


async def test_3_1_stops_at_fifty(operator: Operator, write_as: WriteAs, tenant: str) -> None:
    write_as(
        "subscriptions",
        "INSERT INTO billing_signature_failures (id, room, endpoint, tenant_id)"
        " SELECT %s || n, 'subscriptions', '/payment/verify', %s FROM generate_series(1, 60) n",
        f"sig_{tenant}_",
        tenant,
    )

    assert len(operator.run("runbook_3_1", ALERT_TENANT=tenant).rows) == 50


@pytest.mark.parametrize("word", ["payment.failed", "virtual_account.credited", "unheard.of"])
async def test_5_1_hears_every_event_that_was_decided_even_one_that_changes_nothing(
    room: Room, operator: Operator, tenant: str, word: str
) -> None:
    document = json.loads(sample("payment.failed.json")) | {"event": word, "account_id": f"acc_{tenant}"}
    before = datetime.now(UTC)

    await room.deliver({"body": json.dumps(document).encode(), "event_id": f"evt_{tenant}"})

    assert before <= operator.run("runbook_5_1").row["max"] <= datetime.now(UTC)
