"""The shared schema `ops`: every room appends and reads, touches only its own rows; operators resolve."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.database import create_engine, transaction
from shared.migrations import drift
from shared.ops import SCHEMA, store, tables

ROOM, OTHER_ROOM = "scheduler", "webhooks"


@pytest.fixture
def tenant_id() -> str:
    """A tenant that no other test knows."""
    return f"ops-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def room(database: Any) -> AsyncIterator[AsyncEngine]:
    """The scheduler's sessions."""
    engine = create_engine(database.url(f"{ROOM}_rw"), application_name="test_ops", pool_size=2)
    yield engine
    await engine.dispose()


@pytest.fixture
async def operator(database: Any) -> AsyncIterator[AsyncEngine]:
    """An operator's sessions."""
    engine = create_engine(database.url("billing_operator"), application_name="test_ops", pool_size=2)
    yield engine
    await engine.dispose()


async def open_finding(db: AsyncConnection, tenant_id: str | None, **changes: Any) -> str:
    """Open a finding that is like any other."""
    values: dict[str, Any] = {
        "room": ROOM,
        "check_type": "balance_mismatch",
        "tenant_id": tenant_id,
        "severity": "critical",
        "observed": {"balance": 10, "expected_balance": 7},
    }
    return await store.open_finding(db, **(values | changes))


async def refused(engine: AsyncEngine, statement: str, **values: Any) -> str:
    """Run a statement that must fail and return the database's words."""
    with pytest.raises(DBAPIError) as error:
        async with transaction(engine) as db:
            await db.execute(text(statement), values)
    return str(error.value.orig)


def test_tables_match_the_migrations(database: Any) -> None:
    assert drift(database.admin_url, SCHEMA, tables.metadata) == []


@pytest.mark.parametrize("for_a_tenant", [True, False], ids=["tenant", "no-tenant"])
async def test_one_open_finding_refreshed_then_a_new_one_after_it_was_resolved(
    room: AsyncEngine, tenant_id: str, for_a_tenant: bool
) -> None:
    tenant, check = (tenant_id if for_a_tenant else None), f"check-{tenant_id}"
    async with transaction(room) as db:
        first = await open_finding(db, tenant, check_type=check)
    async with transaction(room) as db:
        again = await open_finding(db, tenant, check_type=check, severity="warning", observed={"balance": 11})
        row = (
            await db.execute(
                text("SELECT severity::text, observed FROM billing_integrity_reports WHERE id = :id"),
                {"id": first},
            )
        ).one()
    assert again == first
    assert tuple(row) == ("warning", {"balance": 11})
    async with transaction(room) as db:
        resolve = {"room": ROOM, "check_type": check, "tenant_id": tenant, "resolved_by": "audit"}
        assert await store.resolve_finding(db, **resolve) is True
        assert await store.resolve_finding(db, **resolve) is False
        assert await open_finding(db, tenant, check_type=check) != first


async def test_severity_sorts_critical_first_and_an_operator_resolves_what_a_runbook_says(
    room: AsyncEngine, operator: AsyncEngine, tenant_id: str
) -> None:
    async with transaction(room) as db:
        warning = await open_finding(db, tenant_id, check_type="orphan_pending_sub", severity="warning")
        critical = await open_finding(db, tenant_id)
    async with transaction(operator) as db:
        rows = await db.execute(
            text(
                "SELECT id, tenant_id, check_type, severity, observed, created_at"
                " FROM billing_integrity_reports"
                " WHERE resolved_at IS NULL AND tenant_id = :tenant ORDER BY severity DESC, created_at DESC"
            ),
            {"tenant": tenant_id},
        )
        assert [row.id for row in rows] == [critical, warning]
        resolved = await db.execute(
            text(
                "UPDATE billing_integrity_reports SET resolved_at = NOW(), resolved_by = 'me' WHERE id = :id"
            ),
            {"id": critical},
        )
        assert resolved.rowcount == 1


async def test_an_operator_edits_nothing_else(
    room: AsyncEngine, operator: AsyncEngine, tenant_id: str
) -> None:
    async with transaction(room) as db:
        await open_finding(db, tenant_id)
    for statement in (
        "UPDATE billing_integrity_reports SET observed = '{}' WHERE tenant_id = :tenant",
        "DELETE FROM billing_integrity_reports WHERE tenant_id = :tenant",
        "UPDATE billing_audit_log SET actor_id = 'x' WHERE tenant_id = :tenant",
        "DELETE FROM billing_signature_failures WHERE tenant_id = :tenant",
    ):
        assert "permission denied" in await refused(operator, statement, tenant=tenant_id)


async def test_a_room_neither_forges_nor_touches_the_rows_of_another(
    database: Any, room: AsyncEngine, tenant_id: str
) -> None:
    async with transaction(room) as db:
        finding = await open_finding(db, tenant_id)
    other = create_engine(database.url(f"{OTHER_ROOM}_rw"), application_name="test_ops", pool_size=1)
    try:
        async with transaction(other) as db:
            seen = await db.scalar(
                text("SELECT room FROM billing_integrity_reports WHERE id = :id"), {"id": finding}
            )
            assert seen == ROOM
            resolve = {"room": ROOM, "check_type": "balance_mismatch", "tenant_id": tenant_id}
            assert await store.resolve_finding(db, **resolve, resolved_by="x") is False
        with pytest.raises(DBAPIError, match="row-level security"):
            async with transaction(other) as db:
                await open_finding(db, tenant_id, check_type="forged")
    finally:
        await other.dispose()


async def test_the_audit_log_keeps_before_after_and_reason_and_no_room_rewrites_it(
    room: AsyncEngine, tenant_id: str
) -> None:
    async with transaction(room) as db:
        audit_id = await store.record_audit(
            db,
            room=ROOM,
            action="job.pause",
            actor_type="operator",
            actor_id="asha",
            tenant_id=tenant_id,
            resource_type="job",
            resource_id="reconcile",
            before={"paused": False},
            after={"paused": True},
            reason="provider down",
            request_id="req-1",
        )
        row = (
            await db.execute(
                text("SELECT metadata, created_at FROM billing_audit_log WHERE id = :id"), {"id": audit_id}
            )
        ).one()
    assert row.metadata == {"before": {"paused": False}, "after": {"paused": True}, "reason": "provider down"}
    assert row.created_at.tzinfo is not None
    for statement in ("UPDATE billing_audit_log SET actor_id = 'x'", "DELETE FROM billing_audit_log"):
        assert "permission denied" in await refused(room, statement)


async def test_signature_failures_take_the_two_endpoints_of_the_runbook(
    room: AsyncEngine, operator: AsyncEngine, tenant_id: str
) -> None:
    failure = {"room": ROOM, "tenant_id": tenant_id, "remote_ip": "192.0.2.7", "user_agent": None}
    async with transaction(room) as db:
        await store.record_signature_failure(db, endpoint="webhook", payload_id=None, **failure)
        await store.record_signature_failure(db, endpoint="/payment/verify", payload_id="pay_1", **failure)
    async with transaction(operator) as db:
        rows = await db.execute(
            text(
                "SELECT endpoint, COUNT(*) AS n FROM billing_signature_failures"
                " WHERE created_at > NOW() - INTERVAL '1 hour' AND tenant_id = :tenant GROUP BY endpoint"
            ),
            {"tenant": tenant_id},
        )
        assert {row.endpoint: row.n for row in rows} == {"webhook": 1, "/payment/verify": 1}
    with pytest.raises(DBAPIError, match="billing_signature_failures_endpoint"):
        async with transaction(room) as db:
            await store.record_signature_failure(
                db,
                endpoint="/elsewhere",  # type: ignore[arg-type]
                payload_id=None,
                **failure,
            )


async def test_a_rate_limit_bucket_is_moved_and_dropped_by_its_own_room(
    room: AsyncEngine, tenant_id: str
) -> None:
    take = text(
        "INSERT INTO rate_limit_buckets (room, key, tat) VALUES (:room, :key, now())"
        " ON CONFLICT (room, key) DO UPDATE SET tat = excluded.tat + interval '6 seconds' RETURNING tat"
    )
    async with transaction(room) as db:
        first = await db.scalar(take, {"room": ROOM, "key": tenant_id})
        second = await db.scalar(take, {"room": ROOM, "key": tenant_id})
        dropped = await db.execute(
            text("DELETE FROM rate_limit_buckets WHERE key = :key"), {"key": tenant_id}
        )
    assert (second - first).total_seconds() == 6
    assert dropped.rowcount == 1
